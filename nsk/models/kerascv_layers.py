"""Decomposes KerasCV's composite layers, such as transformer blocks, into plain layers.

What remains are Keras' own layers and operations: all layers have deterministic names, noise can be
replaced, and a saved model does not need KerasCV.
"""

import keras

from nsk.models.layers import StochasticDepth

# Composite layers whose `call` can be traced for tensors of any batch size.
TRACEABLE = (
    "CrossStagePartial",
    "FusedMBConvBlock",
    "MBConvBlock",
    "OverlappingPatchingAndEmbedding",
    "SqueezeAndExcite2D",
)


def decompose(model: keras.Model) -> keras.Model:
    """Rebuilds a functional KerasCV model from the same layers without composite layers.

    A layer within a composite layer is renamed to the composite layer's name and its attribute.
    """
    while any(_is_composite(layer) for layer in model.layers):
        model = keras.models.clone_model(
            model, clone_function=lambda layer: layer, call_function=_call_decomposed
        )
    return model


def _is_composite(layer):
    kind = type(layer).__name__
    return isinstance(layer, keras.Sequential) or kind in TRACEABLE or kind in TRANSFORMER_CALLS


def _call_decomposed(operation, *args, **kwargs):
    """Calls an operation; of a composite layer its inner layers, after renaming them."""
    if not _is_composite(operation):
        return operation(*args, **kwargs)
    _rename_inner_layers(operation)
    if isinstance(operation, keras.Sequential):
        (features,) = args
        for layer in operation.layers:
            features = layer(features)
        return features
    call = TRANSFORMER_CALLS.get(type(operation).__name__)
    return call(operation, *args) if call else operation.call(*args)


def _rename_inner_layers(composite):
    """Names the layers in a composite layer by its name and the attribute that holds each.

    Layers that already have such a name keep it.
    """
    if isinstance(composite, keras.Sequential):
        inner = {str(index): layer for index, layer in enumerate(composite.layers)}
    else:
        inner = {}
        for attribute, value in vars(composite).items():
            if attribute.startswith("_"):
                continue
            if isinstance(value, (list, tuple)):
                inner |= {f"{attribute}{index}": item for index, item in enumerate(value)}
            else:
                inner[attribute] = value
    for name, layer in inner.items():
        if isinstance(layer, keras.layers.Layer) and not layer.name.startswith(composite.name):
            layer.name = f"{composite.name}_{name}"


def _call_encoder(block, inputs):
    """A `HierarchicalTransformerEncoder`; its shared DropPath becomes a layer for each branch."""
    features = inputs
    branches = (("attn", block.norm1, block.attn), ("mlp", block.norm2, block.mlp))
    for name, norm, layer in branches:
        branch = _call_decomposed(layer, norm(features))
        branch = StochasticDepth(1.0, name=f"{block.name}_{name}_drop")(branch)
        features = keras.layers.Add(name=f"{block.name}_{name}_add")([features, branch])
    return features


def _call_attention(layer, inputs):
    """A `SegFormerMultiheadAttention`: KerasCV's `call` needs a fixed batch size."""
    _, length, channels = inputs.shape
    side, head_size = int(length**0.5), channels // layer.num_heads

    def split_heads(projection, features):
        name, projected = projection.name, projection(features)
        split = keras.layers.Reshape((-1, layer.num_heads, head_size), name=f"{name}_split")
        return keras.layers.Permute((2, 1, 3), name=f"{name}_heads")(split(projected))

    queries, features = split_heads(layer.q, inputs), inputs
    if layer.sr_ratio > 1:  # Transposed and reshaped as in KerasCV, whose weights depend on it.
        name = layer.sr.name
        features = keras.layers.Permute((2, 1), name=f"{name}_turn")(features)
        features = keras.layers.Reshape((side, side, channels), name=f"{name}_in")(features)
        features = layer.sr(features)
        features = keras.layers.Reshape((channels, -1), name=f"{name}_out")(features)
        features = layer.norm(keras.layers.Permute((2, 1), name=f"{name}_back")(features))
    keys, values = split_heads(layer.k, features), split_heads(layer.v, features)
    keys = keras.layers.Permute((1, 3, 2), name=f"{layer.k.name}_turn")(keys)
    weights = keras.ops.softmax(keras.ops.matmul(queries, keys) * layer.scale, axis=-1)
    mixed = keras.ops.matmul(weights, values)
    mixed = keras.layers.Permute((2, 1, 3), name=f"{layer.name}_join")(mixed)
    return layer.proj(keras.layers.Reshape((length, channels), name=f"{layer.name}_out")(mixed))


def _call_mix_ffn(layer, inputs):
    """A `MixFFN`: two dense layers and a depthwise convolution between them."""
    side = int(inputs.shape[1] ** 0.5)
    features = layer.fc1(inputs)
    features = keras.layers.Reshape((side, side, -1), name=f"{layer.name}_image")(features)
    features = layer.dwconv(features)
    features = keras.layers.Reshape((side * side, -1), name=f"{layer.name}_line")(features)
    return layer.fc2(keras.ops.gelu(features))


# Composite layers whose `call` needs a fixed batch size, and what is called instead.
TRANSFORMER_CALLS = {
    "HierarchicalTransformerEncoder": _call_encoder,
    "MixFFN": _call_mix_ffn,
    "SegFormerMultiheadAttention": _call_attention,
}
