"""What a whole chain needs is checked before its first stage trains."""

import keras
import pytest

from nsk import models
from nsk.commands import plan, run
from nsk.data import ingest, records, shards
from nsk.distributed import device_memory
from nsk.errors import UserError
from nsk.stages.validation import check_chain


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Shared, so that the images are ingested once."""
    return tmp_path_factory.mktemp("validation") / "run"


@pytest.fixture(scope="module")
def unlabeled_records(digits, tmp_path_factory):
    """Pattern of records of 20 images without pseudo-labels."""
    folder = tmp_path_factory.mktemp("records")
    with shards.ShardWriter(folder, "images", [str(digit) for digit in range(10)], 20) as writer:
        for number, encoded in enumerate(digits[2][:20]):
            writer.write(records.image_example(f"{number}", encoded))
    return f"{folder}/*.tfrecord"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"strategy": "mirrored", "labeled_batch_size": ["2", "3"]},
            "labeled batch of 3 images does not divide over 2 replicas",
        ),
        ({"finetune_resolution": [0, 4]}, "--finetune_resolution=4 is too small"),
        (
            {"finetune_resolution": [8], "finetune_frozen_blocks": [0, 9]},
            "--finetune_frozen_blocks=9 of resnet9, which has 3 blocks: give at most 3",
        ),
        ({"image_size": [4], "models": ["resnet20", "resnet9"]}, "--image_size=4 is too small"),
        ({"crop_mode": "reflect", "crop_padding": ["1", "8"]}, "--crop_padding=8 of .* 8 pixels"),
        ({"cutout_side": ["0", "8"]}, "--cutout_side=8 of images of 8 pixels"),
        (
            {"train_steps": ["0"], "train_images": ["500", "127"], "labeled_batch_size": ["32"]},
            "--train_images=127 of generation 1 is less than its batch of 128 images",
        ),
        (
            {"init_from": ["scratch", "teacher"]},
            "student 1 is a resnet9, which cannot take the weights",
        ),
        (
            {"first_scores": "records", "unlabeled_dataset": "tfrecord:{pattern}"},
            "--first_scores=records: 20 of 20 unlabelled images have no probabilities",
        ),
    ],
)
def test_a_student_that_cannot_be_trained_is_rejected_before_the_teacher_is_trained(
    workdir, make_values, unlabeled_records, values, message
):
    values = {
        name: value.format(pattern=unlabeled_records) if isinstance(value, str) else value
        for name, value in values.items()
    }
    with pytest.raises(UserError, match=message):
        run.execute(make_values(workdir, **values))
    assert not (workdir / "gen0").exists()


def test_weights_that_do_not_fit_are_rejected_before_anything_is_trained(
    workdir, make_values, tmp_path
):
    path = tmp_path / "first.keras"
    models.build_model("convnet5", num_classes=10, image_size=8).save(path)
    values = make_values(workdir, init_from=["scratch", str(path)])
    with pytest.raises(UserError, match=r"first\.keras do not fit resnet9: .* more layers"):
        run.execute(values)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"first\.keras cannot be read"):
        run.execute(values)
    assert not (workdir / "gen0").exists()


def test_networks_that_do_not_fit_their_settings_trigger_one_warning_each(
    make_runner, tmp_path, caplog
):
    """Here without images: with placeholder counts."""
    counts = ingest.placeholder_counts(50, 900, 10)
    values = {"models": ["resnet8", "resnet8", "wrn10_1"], "image_size": ["72"]}
    values["labeled_batch_size"] = ["16"]
    check_chain(make_runner(tmp_path, **values), counts)
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.partition(": ")[0] for line in lines] == [
        f"{name} is a network for small images" for name in ("resnet8", "wrn10_1")
    ]
    caplog.clear()
    values = {"models": ["convnet5"], "image_size": ["32"], "labeled_batch_size": ["16"]}
    check_chain(make_runner(tmp_path, **values), counts)
    assert not caplog.text


def test_a_batch_larger_than_the_labelled_images_triggers_a_warning(make_runner, tmp_path, caplog):
    counts = ingest.placeholder_counts(50, 900, 10)
    values = {"models": ["convnet5"], "image_size": ["32"], "labeled_batch_size": ["100"]}
    check_chain(make_runner(tmp_path, **values), counts)
    assert "exceeds the 50 labelled images: a step is 2.0 epochs" in caplog.text


@pytest.mark.parametrize(
    ("mean", "above_half", "resize_mode", "warned"),
    [
        (0.33, 0.05, "crop", False),  # Photographs of 3:2, and few panoramas.
        (0.44, 0.0, "crop", True),  # 16:9.
        (0.2, 0.15, "crop", True),
        (0.6, 1.0, "pad", False),
        (0.6, 1.0, "squash", False),
    ],
)
def test_pixels_that_are_never_seen_trigger_a_warning(
    make_runner, tmp_path, caplog, mean, above_half, resize_mode, warned
):
    counts = ingest.placeholder_counts(50, 900, 10)
    counts["outside_square"] = {"mean": mean, "above_half": above_half}
    values = {"models": ["convnet5"], "image_size": ["32"], "labeled_batch_size": ["16"]}
    check_chain(make_runner(tmp_path, resize_mode=resize_mode, **values), counts)
    expected = f"on average {mean:.0%} of an image's pixels are outside of its central square"
    assert (expected in caplog.text) == ("--resize_mode=pad" in caplog.text) == warned


# A given teacher.


def save_teacher(path, *, softmax=False, width=8, num_classes=10):
    inputs = keras.Input((8, width, 3))
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    outputs = keras.layers.Dense(num_classes)(features)
    if softmax:
        outputs = keras.layers.Softmax()(outputs)
    keras.Model(inputs, outputs).save(path)


@pytest.fixture
def plan_with_teacher(workdir, make_values):
    """Function that plans one student of the given teacher."""

    def execute(path, **values):
        return plan.execute(make_values(workdir, teacher=str(path), models=["convnet5"], **values))

    return execute


@pytest.mark.parametrize(
    ("model", "class_names", "message"),
    [
        ({"softmax": True}, None, "returns probabilities; expected logits"),
        ({"width": 4}, None, r"takes images of \(8, 4, 3\): expected"),
        ({"num_classes": 9}, None, "has 9 classes; the run has 10:"),
        (
            {},
            [*"1023456789"],
            r"was trained on the classes 1, 0, 2.* \(different: '1' for '0', '0' for '1'\)",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_rejected_by_plan(
    plan_with_teacher, tmp_path, model, class_names, message
):
    path = tmp_path / "teacher.keras"
    save_teacher(path, **model)
    if class_names:
        (tmp_path / "class_names.txt").write_text("\n".join(class_names) + "\n")
    with pytest.raises(UserError, match=message):
        plan_with_teacher(path)


def test_a_student_cannot_be_initialised_from_a_teacher_of_another_network(
    plan_with_teacher, tmp_path, caplog
):
    path = tmp_path / "teacher.keras"
    save_teacher(path)
    plan_with_teacher(path)
    assert f"--teacher: no class names found beside {path}" in caplog.text
    with pytest.raises(UserError, match="do not fit convnet5: layer1_conv is missing"):
        plan_with_teacher(path, init_from=["teacher"])


def test_a_damaged_teacher_is_named(plan_with_teacher, tmp_path):
    path = tmp_path / "teacher.keras"
    save_teacher(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (content, content[:1000], b"not a model"):
        path.write_bytes(bytes(damaged))
        with pytest.raises(UserError, match=r"teacher\.keras cannot be loaded"):
            plan_with_teacher(path)


def test_a_step_that_does_not_fit_into_the_memory_triggers_a_warning(
    make_runner, workdir, monkeypatch, caplog
):
    monkeypatch.setattr(device_memory, "replica_bytes", lambda _: 4 * 2**20)
    runner = make_runner(workdir, models=["convnet5"], labeled_batch_size=["64"], image_size=["32"])
    check_chain(runner, ingest.placeholder_counts(600, 600, 10))
    assert "gen0/teacher convnet5: 64 images at a time take about" in caplog.text
    assert "of 4.0 MiB on a device, without work space; give --accumulation_steps=" in caplog.text
    caplog.clear()
    monkeypatch.setattr(device_memory, "replica_bytes", lambda _: 2**36)
    check_chain(runner, ingest.placeholder_counts(600, 600, 10))
    assert "images at a time" not in caplog.text


def test_the_memory_of_fine_tuning_is_checked_as_well(make_runner, workdir, monkeypatch, caplog):
    """At a higher resolution, with less memory if blocks are frozen."""
    monkeypatch.setattr(device_memory, "replica_bytes", lambda _: 32 * 2**20)
    values = {"models": ["resnet9"], "labeled_batch_size": ["8"], "image_size": ["16"]}
    values |= {"finetune_resolution": ["64"], "finetune_epochs": ["1"]}
    counts = ingest.placeholder_counts(600, 600, 10)
    for frozen, is_warned in ((0, True), (3, False)):
        caplog.clear()
        check_chain(make_runner(workdir, **values, finetune_frozen_blocks=[str(frozen)]), counts)
        assert ("gen0/finetune resnet9: 8 images at a time" in caplog.text) == is_warned
        assert "gen0/teacher" not in caplog.text
