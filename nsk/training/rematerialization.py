"""Gradient checkpointing: the backward pass recomputes activations, block by block."""

import itertools

import keras
import tensorflow as tf

from nsk.models.blocks import block_name, block_names


class Rematerialized:
    """A network that does not keep the activations inside its blocks for the backward pass.

    Only the tensors between blocks are kept; the inside of a block is recomputed when the backward
    pass reaches it. Outputs and gradients equal those of the network, and so does the noise, which
    is drawn by position. BatchNorm's moving averages are updated once per step.

    Args:
        model: `keras.Model` of `build_model`; the names of its layers contain their blocks.

    Reference:
        [Chen et al., 2016](https://arxiv.org/abs/1604.06174)
    """

    def __init__(self, model: keras.Model):
        self._segments = [_recomputed(segment) for segment in segments(model)]

    def __call__(self, images: tf.Tensor, training: bool) -> tf.Tensor:
        """Logits of images; arguments as for the network."""
        features = images
        for segment in self._segments:
            features = segment(features, training)
        return features


def recomputed_segments(model: keras.Model, rematerialize: bool) -> list[keras.Model]:
    """The segments that the backward pass recomputes; none if it is off or blocks are unknown."""
    return segments(model) if rematerialize and block_names(model) else []


def segments(model: keras.Model) -> list[keras.Model]:
    """A network as a list of consecutive networks: stem, blocks and head."""
    borders = [model.input, *_find_borders(model), model.output]
    return [
        keras.Model(before, after, name=f"{model.name}_segment{number}")
        for number, (before, after) in enumerate(itertools.pairwise(borders))
    ]


def _find_borders(model):
    """The tensors between blocks that no other connection bypasses, in order."""
    consumers = {}
    for layer in model.layers:
        for tensor in layer.input if isinstance(layer.input, list) else [layer.input]:
            consumers.setdefault(id(tensor), set()).add(layer)
    borders, done, block, open_ids = [], set(), None, {}
    for layer in model.layers:
        if block_name(layer) != block and len(open_ids) == 1 and done:
            borders += open_ids.values()
        block = block_name(layer)
        done.add(layer)
        open_ids[id(layer.output)] = layer.output
        open_ids = {
            key: value for key, value in open_ids.items() if not consumers.get(key, set()) <= done
        }
    return borders


def _recomputed(segment):
    """The segment as a function of (features, training) that keeps only its inputs."""

    def call(features, training):
        calls = []

        def run(features):
            calls.append(features)
            if len(calls) == 1:
                return segment(features, training=training)
            # Called in the backward pass: BatchNorm must not update its statistics twice.
            with keras.StatelessScope():
                return segment(features, training=training)

        return tf.recompute_grad(run)(features)

    return call
