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
                found[value.tag, event.step] = tf.make_ndarray(value.tensor).tolist()
    return found


def test_every_metric_is_a_point_and_an_earlier_call_is_replaced(tmp_path):
    teacher = {"index": 0, "dev": {"accuracy": 0.5, "top5": None}, "test": {"accuracy": 0.4}}
    student = {
        "index": 1,
        "dev": {"accuracy": 0.75, "top5": None},
        "test": {"accuracy": 0.6, "corruptions/mce": 0.7},
        "pseudo": {"kept": 900, "precision": 0.95, "per_class_copies": [90] * 10},
    }
    classes = {"class_names": ["cat", "dog"]}
    write_generations({"generations": [teacher], **classes}, tmp_path / "events")
    write_generations({"generations": [teacher, student], **classes}, tmp_path / "events")
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


@pytest.mark.parametrize("num_classes", [3, 51])
def test_recall_and_precision_of_classes(tmp_path, num_classes):
    """Classes without images or predictions have none; with many classes there is a histogram."""
    recall = [0.5, None, *[1.0] * (num_classes - 2)]
    dev = {"per_class": {"images": [2] * num_classes, "recall": recall, "precision": recall[::-1]}}
    names = [f"class {number}" for number in range(num_classes)]
    write_generations({"generations": [{"index": 2, "dev": dev}], "class_names": names}, tmp_path)
    found = read(tmp_path)
    # Rows are (lower edge, upper edge, number).
    histogram = found.pop(("dev_recall/all_classes", 2))
    assert sum(count for *_, count in histogram) == num_classes - 1
    assert histogram[0][0] == 0.5 and histogram[-1][1] == 1.0
    del found["dev_precision/all_classes", 2]
    curves = {
        ("dev_recall/class 0", 2): 0.5,
        ("dev_recall/class 2", 2): 1.0,
        ("dev_precision/class 0", 2): 1.0,
        ("dev_precision/class 2", 2): 0.5,
    }
    assert found == (curves if num_classes == 3 else {})
