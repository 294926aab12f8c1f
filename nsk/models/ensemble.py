"""Ensembles: one network whose probabilities are the mean of those of several."""

from collections.abc import Sequence

import keras

from nsk.models.layers import LogMeanProbability


def average(members: Sequence[keras.Model]) -> keras.Model:
    """Makes a network of several, which are changed: they become parts of it.

    Args:
        members: functional models of the same classes from images of the same size to logits.

    Returns:
        A model from the same images to the logarithms of the mean probabilities. The layers of the
        first member are its own, and every other member is one layer.
    """
    first, *others = members
    image = first.inputs[0]
    logits = [first.outputs[0]]
    for number, member in enumerate(others, start=2):
        member.name = f"member{number}"
        logits.append(member(image))
    mean = LogMeanProbability(name="log_mean_probability", dtype="float32")
    return keras.Model(image, mean(logits), name="ensemble")
