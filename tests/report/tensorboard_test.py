"""TensorBoard's points of all generations, read back from event files."""

import pytest
import tensorflow as tf
from tensorflow.core.util import event_pb2

from nsk.report.tensorboard import write_generations


def read(folder):
    found = {}
    for path in folder.iterdir():
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = event_pb2.Event.FromString(record)
            for value in event.summary.value:
                found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_every_metric_is_a_point_and_an_earlier_call_is_replaced(tmp_path):
    teacher = {"index": 0, "dev": {"accuracy": 0.5, "top5": None}, "test": {"accuracy": 0.4}}
    student = {
        "index": 1,
        "dev": {"accuracy": 0.75, "top5": None},
        "test": {"accuracy": 0.6, "corruptions/mce": 0.7},
        "pseudo": {"kept": 900, "precision": 0.95, "per_class_copies": [90] * 10},
    }
    write_generations({"generations": [teacher]}, tmp_path / "events")
    write_generations({"generations": [teacher, student]}, tmp_path / "events")
    assert len(list((tmp_path / "events").iterdir())) == 1
    assert read(tmp_path / "events") == pytest.approx(
        {
            ("dev/accuracy", 0): 0.5,
            ("test/accuracy", 0): 0.4,
            ("dev/accuracy", 1): 0.75,
            ("test/accuracy", 1): 0.6,
            ("test/corruptions/mce", 1): 0.7,
            ("pseudo/kept", 1): 900,
            ("pseudo/precision", 1): 0.95,
        }
    )
