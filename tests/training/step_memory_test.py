"""The estimate of a step's memory, and what a user is told when it is not there."""

import dataclasses

import numpy as np
import pytest

from nsk.models import build_model
from nsk.models.cost import estimate_cost
from nsk.training.recipe import Recipe
from nsk.training.step_memory import MAX_SHARE, StepMemory
from nsk.units import format_bytes

RATES = np.zeros(1, np.float32)


@pytest.fixture(scope="module")
def model():
    return build_model("resnet8", num_classes=10, image_size=8)


def memory_of(model, sizes=(32, 96), num_replicas=1, **settings):
    return StepMemory.of(estimate_cost(model), sizes, Recipe(RATES, {}, **settings), num_replicas)


def test_the_state_has_all_variables_of_a_training(model):
    trained = sum(np.prod(variable.shape) for variable in model.trainable_variables)
    fixed = sum(np.prod(variable.shape) for variable in model.non_trainable_variables)
    # Weights, their published copy and momentum; BatchNorm's statistics twice.
    assert memory_of(model).state_bytes == 4 * (3 * trained + 2 * fixed)
    assert memory_of(model, momentum=0.0).state_bytes == 4 * (2 * trained + 2 * fixed)
    # The average, and the mean square beside the momentum.
    settings = {"optimizer": "rmsprop", "ema_decay": 0.9}
    assert memory_of(model, **settings).state_bytes == 4 * (5 * trained + 3 * fixed)
    assert memory_of(model).gradient_bytes == 4 * trained


def test_a_replica_processes_its_part_of_a_batch_in_micro_batches(model):
    memory = memory_of(model, num_replicas=2, accumulation_steps=4)
    assert memory.images == 128 // 2 // 4
    activations = 16 * estimate_cost(model).activation_bytes
    assert memory.activation_bytes == activations
    assert memory.bytes == memory.state_bytes + 2 * memory.gradient_bytes + activations
    memory = memory_of(model)
    assert memory.bytes == memory.state_bytes + memory.gradient_bytes + memory.activation_bytes


def test_the_first_number_of_micro_batches_that_divides_and_fits_is_named(model):
    memory = memory_of(model, sizes=(30, 90))
    # Four micro-batches would fit, but 30 images do not divide by 4.
    three, four = (dataclasses.replace(memory, accumulation_steps=steps) for steps in (3, 4))
    available = four.bytes / MAX_SHARE + 1
    assert four.fits(available) and not three.fits(available)
    assert "give --accumulation_steps=5 (24 images at a time" in memory.describe(available)
    assert "--accumulation_steps=2 (60 images" in memory.describe(None)


def test_no_number_of_micro_batches_is_named_if_none_is_enough(model):
    memory = memory_of(model)
    text = memory.describe(memory.state_bytes)
    assert "accumulation" not in text and "give a smaller --labeled_batch_size" in text
    assert text.startswith(f"128 images at a time take about {format_bytes(memory.bytes)} of ")
