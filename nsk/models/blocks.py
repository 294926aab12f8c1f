"""The blocks of a network, by the names of its layers."""

import re

# block2a_expand_conv, stage1_block2_1_conv, layer3_bn; of KerasCV's v2_stack_0_block1_conv,
# hierarchical_encoder_0_1_norm1, stack1_c2f_pre and dark2_conv.
NAME = re.compile(
    "(?:hierarchical_encoder_[0-9]+_[0-9]+|(?:stack|dark)[0-9]+"
    "|(?:[a-z0-9]+_)*?(?:block|layer)_?[0-9]+[a-z]?)(?=_|$)"
)


def block_of(layer):
    """Name of the block that a layer belongs to; None for the stem and the head."""
    match = NAME.match(layer.name)
    return match[0] if match else None


def block_names(model):
    """Names of a network's blocks, from the images to the logits: a list."""
    return list(dict.fromkeys(filter(None, map(block_of, model.layers))))


def shallow_layers(model, num_blocks):
    """The stem and the first blocks of a network: a list of layers.

    Args:
        model: `keras.Model` of `build_model`.
        num_blocks: int, how many blocks; 0: no layer at all.

    Raises:
        ValueError: the network has fewer blocks.
    """
    names = block_names(model)
    if num_blocks > len(names):
        raise ValueError(f"num_blocks={num_blocks}: {model.name} has {len(names)} blocks.")
    if not num_blocks:
        return []
    frozen, deeper = set(names[:num_blocks]), set(names[num_blocks:])
    shallow = []
    for layer in model.layers:  # By their distance from the logits, so block after block.
        block = block_of(layer)
        if block in deeper or (block is None and frozen <= set(map(block_of, shallow))):
            break
        shallow.append(layer)
    return shallow
