"""TensorBoard's points of a stage do not depend on how its steps came in calls."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.util import event_pb2

from nsk.training.curves import Curves

STEPS = 450


def draw(folder, calls):
    rates = np.linspace(1.0, 0.0, STEPS).astype(np.float32)
    curves = Curves(folder, rates)
    losses, first = np.arange(STEPS, dtype=np.float32), 0
    for count in calls:
        part = losses[first : first + count]
        curves.add_steps(part, part * 2, 100.0)
        first += count
        if first == STEPS:
            curves.add_evaluation({"accuracy": 0.5, "top5": None})
    curves.close()
    points = {}
    for path in folder.iterdir():
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = event_pb2.Event.FromString(record)
            for value in event.summary.value:
                points[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return points, curves.final_loss


def test_points_are_means_over_fixed_numbers_of_steps(tmp_path):
    points, final_loss = draw(tmp_path / "even", [150] * 3)
    # 450 steps in about 200 points: two steps each.
    assert points["train/loss", 2] == 0.5 and points["train/loss", 450] == 448.5
    assert points["train/gradient_norm", 4] == 5.0
    assert points["train/learning_rate", 2] == pytest.approx(1 - 1 / 449)
    assert points["dev/accuracy", 450] == 0.5 and ("dev/top5", 450) not in points
    assert final_loss == np.arange(405, 450).mean()

    others, other_loss = draw(tmp_path / "odd", [1, 7, 300, 141, 1])
    assert others == points and other_loss == final_loss


def test_a_stage_shorter_than_the_points_has_one_for_each_step(tmp_path):
    curves = Curves(tmp_path / "short", np.ones(3, np.float32))
    curves.add_steps(np.float32([3.0, 2.0, 1.0]), np.ones(3, np.float32), 1.0)
    curves.close()
    assert curves.final_loss == 1.0
