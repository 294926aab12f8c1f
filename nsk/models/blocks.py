"""The blocks of a network, recognised by the names of its layers."""

import re

import keras

# block2a_expand_conv, stage1_block2_1_conv, layer3_bn; of KerasCV v2_stack_0_block1_conv,
# hierarchical_encoder_0_1_norm1, stack1_c2f_pre and dark2_conv.
BLOCK_PREFIX = re.compile(
    "(?:hierarchical_encoder_[0-9]+_[0-9]+|(?:stack|dark)[0-9]+"
    "|(?:[a-z0-9]+_)*?(?:block|layer)_?[0-9]+[a-z]?)(?=_|$)"
)


def block_name(layer: keras.layers.Layer) -> str | None:
    """Name of the block that a layer belongs to; None for the stem and the head."""
    match = BLOCK_PREFIX.match(layer.name)
    return match[0] if match else None


def block_names(model: keras.Model) -> list[str]:
    """Names of a network's blocks, ordered from the input to the logits."""
    return list(dict.fromkeys(filter(None, map(block_name, model.layers))))


def shallow_layers(model: keras.Model, num_blocks: int) -> list[keras.layers.Layer]:
    """The layers of the stem and the first blocks of a network.

    Args:
        model: a network that `build_model` returned.
        num_blocks: number of blocks; 0: no layers, not even the stem.

    Returns:
        List of layers, ordered from the input.

    Raises:
        ValueError: the network has fewer blocks.
    """
    names = block_names(model)
    if num_blocks > len(names):
        raise ValueError(f"num_blocks={num_blocks}: {model.name} has {len(names)} blocks.")
    if not num_blocks:
        return []
    included, deeper = set(names[:num_blocks]), set(names[num_blocks:])
    shallow = []
    # Keras orders layers by their distance from the logits, so block after block.
    for layer in model.layers:
        name = block_name(layer)
        if name in deeper or (name is None and included <= set(map(block_name, shallow))):
            break
        shallow.append(layer)
    return shallow
