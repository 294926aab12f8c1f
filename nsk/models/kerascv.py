"""KerasCV's backbones as classifiers: rebuilt layer by layer, with this project's noise and seeds.

KerasCV builds a backbone, whose composite layers are decomposed. The resulting layers are then
called again on this network's input: every layer has a name that depends only on the backbone,
every weight a seed, every random layer draws from `nsk.noise`, and a saved model does not need
KerasCV.
"""

import collections
import concurrent.futures
import re

import keras

from nsk import noise
from nsk.errors import UserError, suggest_names
from nsk.models import kerascv_layers
from nsk.models.kerascv_backbones import BACKBONES
from nsk.models.layers import (
    BatchNormalization,
    Builder,
    StochasticDepth,
    survival_probabilities,
)

# Prefixes of KerasCV's backbones that are not supported, and why.
UNSUPPORTED = {
    "videoswin": "takes videos",
    "centerpillar": "takes point clouds",
    "vitdet": "is for detection in images of 1,024 pixels, and its layers cannot be saved",
}
# Prefix of the layer names of a block with stochastic depth.
BLOCK_PREFIX = re.compile(r"block\d+[a-z]_|hierarchical_encoder_\d+_\d+")


def names() -> list[str]:
    """Names of all networks of this family, `kerascv:NAME`."""
    return [f"kerascv:{backbone}" for backbone in BACKBONES]


def parse_name(name: str | int) -> tuple[str, str | None]:
    """Parses `NAME` or `NAME@DATA`.

    Case, underscores, hyphens and the suffix Backbone do not matter: EfficientNetV2SBackbone is
    efficientnetv2_s.

    Args:
        name: name of a backbone, with the data set of its pretrained weights after an @.

    Returns:
        (key of `BACKBONES`, data set or None).

    Raises:
        UserError: there is no such backbone, or it has no such weights.
    """
    given, at, data = str(name).partition("@")
    normalized = _normalize_name(given)
    for prefix, reason in UNSUPPORTED.items():
        if normalized.startswith(prefix):
            raise UserError(f"--models=kerascv:{name}: {given} {reason}: give another backbone.")
    known = {_normalize_name(backbone): backbone for backbone in BACKBONES}
    if normalized not in known:
        spellings = {backbone: [f"kerascv:{backbone}"] for backbone in BACKBONES}
        raise UserError(
            f"--models=kerascv:{name}: unknown backbone {given!r}"
            f"{suggest_names(given, spellings)}: expected one of the {len(BACKBONES)} in "
            "docs/kerascv.md."
        )
    presets = BACKBONES[known[normalized]].presets
    if at and data not in presets:
        valid = f"give @{' or @'.join(presets)}, or " if presets else "KerasCV has none: "
        raise UserError(
            f"--models=kerascv:{name}: unknown weights {data!r} of {given}: {valid}leave out "
            f"@{data}."
        )
    return known[normalized], data or None


def build_kerascv(
    builder: Builder,
    name: str | int,
    *,
    num_classes: int,
    image_size: int,
    dropout_rate: float = 0.0,
    survival_probability: float = 1.0,
) -> keras.Model:
    """Builds a KerasCV backbone with global average pooling, dropout and a dense layer.

    The backbone takes pixels in [0, 1], as with KerasCV's own `include_rescaling`. Weights are
    initialised by KerasCV's initializers with this project's seeds, or from KerasCV's pretrained
    weights.

    Args:
        builder: adds the layers. BatchNorm keeps KerasCV's epsilon.
        name: `NAME` of a backbone, see `parse_name`; `NAME@imagenet` or `NAME@coco` is initialised
            from KerasCV's weights, which are downloaded or taken from kagglehub's cache.
        num_classes: number of classes.
        image_size: side of the square images in pixels: at least 32; even for CSPDarkNets; for MiT
            a multiple of 32, at least 64.
        dropout_rate: rate in [0, 1) of the dropout before the classifier.
        survival_probability: in (0, 1], see `survival_probabilities`, for the blocks in which
            KerasCV has stochastic depth, those of EfficientNets and MiT; KerasCV's own rates are
            replaced. The other backbones have no stochastic depth.

    Returns:
        keras.Model from float32 pixels in [0, 255], shape (batch, image_size, image_size, 3), to
        float32 logits, shape (batch, num_classes).

    Raises:
        UserError: the backbone is unknown, cannot divide images of this size, or its weights cannot
            be loaded.

    Reference:
        [KerasCV](https://github.com/keras-team/keras-cv)
    """
    name, data = parse_name(name)
    pixels, rescaled = builder.image_input(image_size, scale=1 / 255, offset=0.0)
    backbone = _with_new_layer_counters(_make_backbone, name, data, image_size)
    survival = _block_survival(backbone, survival_probability)
    calls = collections.Counter()

    def call(operation, *args, **kwargs):
        args = [rescaled if arg is pixels else arg for arg in args]
        if not isinstance(operation, keras.layers.Layer):
            return operation(*args, **kwargs)
        calls[operation.name] += 1  # A block may use an activation several times.
        layer = _rebuild_layer(operation, calls[operation.name], builder, survival)
        outputs = layer(*args)
        if data and layer.weights:
            layer.set_weights(operation.get_weights())
        return outputs

    features = keras.models.clone_model(
        backbone, input_tensors=pixels, clone_function=lambda layer: layer, call_function=call
    ).output
    logits = builder.classifier(features, num_classes, dropout_rate)
    return keras.Model(pixels, logits, name=f"kerascv_{name}")


def check_image_size(name: str | int, image_size: int, flag: str) -> None:
    """Raises a UserError that names `flag` if a backbone cannot divide images of this side."""
    name, _ = parse_name(name)
    divisor, min_size = BACKBONES[name].divisor, BACKBONES[name].min_size
    if image_size % divisor or image_size < min_size:
        at_least = f", at least {min_size}" if min_size else ""
        raise UserError(
            f"--{flag}={image_size} does not fit kerascv:{name}: give a multiple of "
            f"{divisor}{at_least}."
        )


def _normalize_name(name):
    return re.sub("[_-]", "", name.lower()).removesuffix("backbone")


def _with_new_layer_counters(make, *args):
    """Calls `make` in a thread of its own, with the dtype policy of this thread.

    Keras numbers the layers that it names, and does so per thread: so names do not depend on what
    was built before.
    """
    policy = keras.config.dtype_policy()

    def make_in_thread():
        keras.config.set_dtype_policy(policy)
        return make(*args)

    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return executor.submit(make_in_thread).result()


def _make_backbone(name, data, image_size):
    """A KerasCV backbone without composite layers; pretrained if `data` is not None."""
    import keras_cv  # Takes a second, so only if such a network is used.

    backbone = BACKBONES[name]
    backbone_class = getattr(keras_cv.models, backbone.class_name)
    inputs = {"include_rescaling": False, "input_shape": (image_size, image_size, 3)}
    if data:
        try:
            model = backbone_class.from_preset(backbone.presets[data], **inputs)
        except Exception as error:  # Download, cache and file may raise any exception.
            reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
            raise UserError(
                f"--models=kerascv:{name}@{data}: the weights {backbone.presets[data]} cannot be "
                f"loaded ({reason}): run with access to the network, or leave out @{data}."
            ) from None
        return kerascv_layers.decompose(model)
    # Only the layers are used, so their weights need not be initialised.
    with keras.StatelessScope(initialize_variables=False):
        return kerascv_layers.decompose(backbone_class(**backbone.arguments, **inputs))


def _block_survival(backbone, last):
    """Dict from the prefix of each block with stochastic depth to its survival probability."""
    matches = (BLOCK_PREFIX.match(layer.name) for layer in backbone.layers)
    blocks = list(dict.fromkeys(match[0] for match in matches if match))
    return dict(zip(blocks, survival_probabilities(last, max(1, len(blocks))), strict=False))


def _rebuild_layer(layer, call_number, builder, survival):
    """A copy of KerasCV's layer, with the builder's settings and seeds, for one of its calls.

    Args:
        layer: a layer of KerasCV's backbone.
        call_number: which call of the layer, from 1.
        builder: `Builder`.
        survival: survival probability of each block, see `_block_survival`.
    """
    config = layer.get_config()
    config["name"] = layer.name if call_number == 1 else f"{layer.name}_{call_number}"
    common = {"name": config["name"], "dtype": layer.dtype_policy}
    if isinstance(layer, keras.layers.Dropout | StochasticDepth):
        return StochasticDepth(survival[BLOCK_PREFIX.match(layer.name)[0]], **common)
    if isinstance(layer, keras.layers.Lambda):  # DarkNet's wrapper of its activation.
        return keras.layers.Activation("silu", **common)
    if isinstance(layer, keras.layers.BatchNormalization):
        config.update(momentum=builder.batch_norm_momentum, synchronized=builder.synchronized)
        return BatchNormalization.from_config(config)
    # MobileNet has a layer as activation, which computes the same as this function.
    if isinstance(getattr(layer, "activation", None), keras.layers.Layer):
        config["activation"] = "hard_sigmoid"
    for key, initializer in config.items():
        if key.endswith("_initializer") and "seed" in initializer["config"]:
            initializer["config"]["seed"] = noise.python_seed(builder.seed, layer.name, key)
    return type(layer).from_config(config)
