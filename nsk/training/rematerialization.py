"""Less memory for more time: the backward pass computes activations again, block by block."""

import itertools

import keras
import tensorflow as tf

from nsk.models.blocks import block_of


class Rematerialized:
    """A network whose activations between the borders of its blocks are not kept for training.

    Only the tensors between blocks are kept; what is within a block is computed a second time when
    the backward pass comes to it. Outputs and gradients are those of the network, and so is the
    noise, which is drawn by position. BatchNorm's moving averages go on once for each step.

    Args:
        model: `keras.Model` of `build_model`, whose layers tell their blocks by their names.

    Reference:
        [Chen et al., 2016](https://arxiv.org/abs/1604.06174)
    """

    def __init__(self, model):
        self._segments = [_recomputed(segment) for segment in segments(model)]

    def __call__(self, images, training):
        """Logits of images; arguments as of the network."""
        features = images
        for segment in self._segments:
            features = segment(features, training)
        return features


def segments(model):
    """A network as a list of networks that follow one another: stem, blocks and head."""
    borders = [model.input, *_borders(model), model.output]
    return [
        keras.Model(before, after, name=f"{model.name}_segment{number}")
        for number, (before, after) in enumerate(itertools.pairwise(borders))
    ]


def _borders(model):
    """The tensors between blocks, where nothing else goes past: in order."""
    consumers = {}
    for layer in model.layers:
        for one in layer.input if isinstance(layer.input, list) else [layer.input]:
            consumers.setdefault(id(one), set()).add(layer)
    borders, done, block, open_ids = [], set(), None, {}
    for layer in model.layers:
        if block_of(layer) != block and len(open_ids) == 1 and done:
            borders += open_ids.values()
        block = block_of(layer)
        done.add(layer)
        open_ids[id(layer.output)] = layer.output
        open_ids = {
            key: value for key, value in open_ids.items() if not consumers.get(key, set()) <= done
        }
    return borders


def _recomputed(segment):
    """Function of (features, training) as the segment is, which keeps its inputs alone."""

    def call(features, training):
        calls = []

        def run(features):
            calls.append(features)
            if len(calls) == 1:
                return segment(features, training=training)
            # Called for the backward pass: BatchNorm must not take the same statistics twice.
            with keras.StatelessScope():
                return segment(features, training=training)

        return tf.recompute_grad(run)(features)

    return call
