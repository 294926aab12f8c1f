"""KerasCV's backbones as networks: their layers one by one, with our noise, names and seeds.

KerasCV makes a backbone; what it is made of is then called anew, layer by layer, on our input. Its
composite layers (blocks of convolutions, of a transformer) are taken apart on the way, so that the
network consists of Keras' layers and operations alone: every layer has a name that depends on the
backbone alone, every weight a seed and every random layer a place in `nsk.noise`, and a saved model
needs no KerasCV.
"""

import collections
import concurrent.futures
import re

import keras

from nsk import noise
from nsk.errors import UserError, similar_names
from nsk.models.kerascv_backbones import BACKBONES
from nsk.models.layers import StochasticDepth, survival_probabilities

# Why a backbone that KerasCV has is none here.
REFUSED = {
    "videoswin": "takes videos",
    "centerpillar": "takes point clouds",
    "vitdet": "is made for detection in images of 1,024 pixels, and its layers cannot be saved",
}
# Blocks that stochastic depth drops, as their layers' names begin.
BLOCK = re.compile(r"block\d+[a-z]_|hierarchical_encoder_\d+_\d+")
# Composite layers whose `call` says how they are put together.
CALLED = (
    "CrossStagePartial",
    "FusedMBConvBlock",
    "MBConvBlock",
    "OverlappingPatchingAndEmbedding",
    "SqueezeAndExcite2D",
)


def names():
    """All names of networks here, `kerascv:NAME`."""
    return [f"kerascv:{one}" for one in BACKBONES]


def parse(name):
    """(backbone's name, data of its weights or None) of `NAME` or `NAME@DATA`.

    Case, underscores, hyphens and the suffix Backbone do not matter: EfficientNetV2SBackbone is
    efficientnetv2_s.

    Raises:
        UserError: there is no such backbone, or it has no such weights.
    """
    given, at, data = str(name).partition("@")
    wanted = _normalized(given)
    for start, reason in REFUSED.items():
        if wanted.startswith(start):
            raise UserError(f"--models=kerascv:{name}: {given} {reason}: give another backbone.")
    known = {_normalized(one): one for one in BACKBONES}
    if wanted not in known:
        near = similar_names(given, {one: [f"kerascv:{one}"] for one in BACKBONES})
        raise UserError(
            f"--models=kerascv:{name}: there is no backbone {given!r}{near}: expected one of the "
            f"{len(BACKBONES)} in docs/kerascv.md."
        )
    presets = BACKBONES[known[wanted]].presets
    if at and data not in presets:
        others = f"give @{' or @'.join(presets)}, or " if presets else "KerasCV has none: "
        raise UserError(
            f"--models=kerascv:{name}: there are no weights {data!r} of {given}: {others}leave out "
            f"@{data}."
        )
    return known[wanted], data or None


def build_kerascv(
    builder, name, *, num_classes, image_size, dropout_rate=0.0, survival_probability=1.0
):
    """A backbone of KerasCV, global average pooling, dropout and a dense layer.

    Pixels come to the backbone in [0, 1], as KerasCV's own `include_rescaling` has it. Weights are
    fresh, by KerasCV's initializers with our seeds, or KerasCV's pretrained ones.

    Args:
        builder: `nsk.models.layers.Builder`. BatchNorm keeps KerasCV's epsilon.
        name: string, `NAME` of a backbone, see `parse`; with `NAME@imagenet` or `NAME@coco` it
            begins with KerasCV's weights, which are downloaded or taken from kagglehub's cache.
        num_classes: int.
        image_size: int, side of the square images in pixels: at least 32; for CSPDarkNets even, for
            MiT a multiple of 32 from 64 on.
        dropout_rate: float in [0, 1), before the classifier.
        survival_probability: float in (0, 1], see `survival_probabilities`: of the blocks in which
            KerasCV has stochastic depth, those of EfficientNets and MiT; its own rates do not
            count. The other backbones have none.

    Returns:
        keras.Model from float32 pixels in [0, 255], shape (batch, image_size, image_size, 3), to
        float32 logits, shape (batch, num_classes).

    Raises:
        UserError: the backbone is unknown, cannot divide images of this size, or its weights cannot
            be had.

    Reference:
        [KerasCV](https://github.com/keras-team/keras-cv)
    """
    name, data = parse(name)
    pixels, rescaled = builder.image_input(image_size, scale=1 / 255, offset=0.0)
    backbone = _in_fresh_names(_make_backbone, name, data, image_size)
    survival = _survival(backbone, survival_probability)
    calls = collections.Counter()

    def call(operation, *args, **kwargs):
        args = [rescaled if one is pixels else one for one in args]
        if not isinstance(operation, keras.layers.Layer):
            return operation(*args, **kwargs)
        calls[operation.name] += 1  # A block may use one activation several times.
        layer = _ours(operation, calls[operation.name], builder, survival)
        outputs = layer(*args)
        if data and layer.weights:
            layer.set_weights(operation.get_weights())
        return outputs

    features = keras.models.clone_model(
        backbone, input_tensors=pixels, clone_function=lambda layer: layer, call_function=call
    ).output
    logits = builder.classifier(features, num_classes, dropout_rate)
    return keras.Model(pixels, logits, name=f"kerascv_{name}")


def check_image_size(name, image_size, flag):
    """UserError where a backbone cannot divide images of the side that a flag gives."""
    name, _ = parse(name)
    divisor, least_size = BACKBONES[name].divisor, BACKBONES[name].least_size
    if image_size % divisor or image_size < least_size:
        at_least = f", {least_size} or more" if least_size else ""
        raise UserError(
            f"--{flag}={image_size} does not fit kerascv:{name}: give a multiple of "
            f"{divisor}{at_least}."
        )


def _normalized(name):
    return re.sub("[_-]", "", name.lower()).removesuffix("backbone")


def _in_fresh_names(make, *args):
    """What `make` returns where Keras has counted no layers, with the precision of here.

    Keras counts the layers that it names, and does so for every thread.
    """
    policy = keras.config.dtype_policy()

    def made():
        keras.config.set_dtype_policy(policy)
        return make(*args)

    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return executor.submit(made).result()


def _make_backbone(name, data, image_size):
    """A KerasCV backbone of simple layers, with weights where `data` names some."""
    import keras_cv  # Takes a second, so nobody else waits for it.

    described = BACKBONES[name]
    backbone_class = getattr(keras_cv.models, described.class_name)
    shape = {"include_rescaling": False, "input_shape": (image_size, image_size, 3)}
    if data:
        try:
            backbone = backbone_class.from_preset(described.presets[data], **shape)
        except Exception as error:  # Whatever the network, the cache and the file raise.
            reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
            raise UserError(
                f"--models=kerascv:{name}@{data}: the weights {described.presets[data]} cannot be "
                f"loaded ({reason}): run where the network can be reached, or leave out @{data}."
            ) from None
        return _taken_apart(backbone)
    # The layers are wanted, not their weights: these are not even drawn.
    with keras.StatelessScope(initialize_variables=False):
        return _taken_apart(backbone_class(**described.arguments, **shape))


def _taken_apart(model):
    """A functional model of the same layers without composite ones."""
    while any(_is_composite(layer) for layer in model.layers):
        model = keras.models.clone_model(
            model, clone_function=lambda layer: layer, call_function=_call_apart
        )
    return model


def _is_composite(layer):
    kind = type(layer).__name__
    return isinstance(layer, keras.Sequential) or kind in CALLED or kind in TRANSFORMER_PARTS


def _call_apart(operation, *args, **kwargs):
    """Calls an operation; of a composite layer the parts, once they are named after it."""
    if not _is_composite(operation):
        return operation(*args, **kwargs)
    _name_parts(operation)
    if isinstance(operation, keras.Sequential):
        (features,) = args
        for layer in operation.layers:
            features = layer(features)
        return features
    call = TRANSFORMER_PARTS.get(type(operation).__name__)
    return call(operation, *args) if call else operation.call(*args)


def _name_parts(composite):
    """Names the layers in a composite layer by its name and the attribute that holds each.

    Those that have such a name already keep it.
    """
    if isinstance(composite, keras.Sequential):
        parts = {str(index): layer for index, layer in enumerate(composite.layers)}
    else:
        parts = {}
        for attribute, value in vars(composite).items():
            if attribute.startswith("_"):
                continue
            several = isinstance(value, (list, tuple))
            for index, one in enumerate(value if several else [value]):
                parts[f"{attribute}{index}" if several else attribute] = one
    for name, part in parts.items():
        if isinstance(part, keras.layers.Layer) and not part.name.startswith(composite.name):
            part.name = f"{composite.name}_{name}"


def _encoder(block, inputs):
    """A `HierarchicalTransformerEncoder`, whose one DropPath becomes a layer for each branch."""
    features = inputs
    branches = (("attn", block.norm1, block.attn), ("mlp", block.norm2, block.mlp))
    for name, norm, part in branches:
        branch = _call_apart(part, norm(features))
        branch = StochasticDepth(1.0, name=f"{block.name}_{name}_drop")(branch)
        features = keras.layers.Add(name=f"{block.name}_{name}_add")([features, branch])
    return features


def _attention(layer, inputs):
    """A `SegFormerMultiheadAttention`, of which KerasCV's code wants the batch's size."""
    _, length, channels = inputs.shape
    side, size = int(length**0.5), channels // layer.num_heads

    def heads(projection, features):
        name, projected = projection.name, projection(features)
        split = keras.layers.Reshape((-1, layer.num_heads, size), name=f"{name}_split")(projected)
        return keras.layers.Permute((2, 1, 3), name=f"{name}_heads")(split)

    queries, features = heads(layer.q, inputs), inputs
    if layer.sr_ratio > 1:  # Shapes are turned in this way, and not another, in KerasCV's weights.
        name = layer.sr.name
        features = keras.layers.Permute((2, 1), name=f"{name}_turn")(features)
        features = keras.layers.Reshape((side, side, channels), name=f"{name}_in")(features)
        features = layer.sr(features)
        features = keras.layers.Reshape((channels, -1), name=f"{name}_out")(features)
        features = layer.norm(keras.layers.Permute((2, 1), name=f"{name}_back")(features))
    keys, values = heads(layer.k, features), heads(layer.v, features)
    keys = keras.layers.Permute((1, 3, 2), name=f"{layer.k.name}_turn")(keys)
    weights = keras.ops.softmax(keras.ops.matmul(queries, keys) * layer.scale, axis=-1)
    mixed = keras.ops.matmul(weights, values)
    mixed = keras.layers.Permute((2, 1, 3), name=f"{layer.name}_join")(mixed)
    return layer.proj(keras.layers.Reshape((length, channels), name=f"{layer.name}_out")(mixed))


def _mix_ffn(layer, inputs):
    """A `MixFFN`: two dense layers and a depthwise convolution between them."""
    side = int(inputs.shape[1] ** 0.5)
    features = layer.fc1(inputs)
    features = keras.layers.Reshape((side, side, -1), name=f"{layer.name}_image")(features)
    features = layer.dwconv(features)
    features = keras.layers.Reshape((side * side, -1), name=f"{layer.name}_line")(features)
    return layer.fc2(keras.ops.gelu(features))


# Composite layers whose `call` cannot take tensors of any batch size apart.
TRANSFORMER_PARTS = {
    "HierarchicalTransformerEncoder": _encoder,
    "MixFFN": _mix_ffn,
    "SegFormerMultiheadAttention": _attention,
}


def _survival(backbone, last):
    """Survival probability of each block with stochastic depth, a dict."""
    names = (BLOCK.match(layer.name) for layer in backbone.layers)
    blocks = list(dict.fromkeys(found[0] for found in names if found))
    return dict(zip(blocks, survival_probabilities(last, max(1, len(blocks))), strict=False))


def _ours(layer, number, builder, survival):
    """A layer as the `Builder` would make it, for call `number` (from 1 on) of one of KerasCV's."""
    config = layer.get_config()
    config["name"] = layer.name if number == 1 else f"{layer.name}_{number}"
    common = {"name": config["name"], "dtype": layer.dtype_policy}
    if isinstance(layer, keras.layers.Dropout | StochasticDepth):
        return StochasticDepth(survival[BLOCK.match(layer.name)[0]], **common)
    if isinstance(layer, keras.layers.Lambda):  # DarkNet's, around the activation.
        return keras.layers.Activation("silu", **common)
    if isinstance(layer, keras.layers.BatchNormalization):
        config.update(momentum=builder.batch_norm_momentum, synchronized=builder.synchronized)
    # MobileNet's has a layer for it, of the same arithmetic.
    if isinstance(getattr(layer, "activation", None), keras.layers.Layer):
        config["activation"] = "hard_sigmoid"
    for key, initializer in config.items():
        if key.endswith("_initializer") and "seed" in initializer["config"]:
            initializer["config"]["seed"] = noise.python_seed(builder.seed, layer.name, key)
    return type(layer).from_config(config)
