"""Which sources fit together, and how labels of a test set become those of the data set."""

import unicodedata

import pytest
from PIL import Image

from nsk.config.data import DataConfig
from nsk.data import record_files, records
from nsk.data.pools import open_pools
from nsk.errors import UserError


def fill(root, **images_per_class):
    """Writes images into class folders."""
    for name, count in images_per_class.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (2, 2), number).save(root / name / f"{name}{number}.png")
    return f"folder:{root}"


@pytest.fixture
def photos(tmp_path):
    return fill(tmp_path / "photos", ant=2, bee=2, cow=2)


def test_a_test_set_may_have_some_of_the_classes(tmp_path, photos, caplog):
    test = fill(tmp_path / "some", cow=2, notes=0, ant=0)
    with caplog.at_level("INFO", "absl"):
        pools, names = open_pools(DataConfig(dataset=photos, test_dataset=test, num_dev=1))
    assert names == ["ant", "bee", "cow"]
    pool = pools["test"]
    assert {pool.label(image) for image in pool.source.images(pool.split)} == {2}
    assert pools["train"].label(next(pools["train"].source.images("train"))) == 0
    assert caplog.messages == [
        "--test_dataset: its classes are matched by name with those of --dataset."
    ]


def test_classes_of_a_test_set_that_are_unknown_are_refused(tmp_path, photos):
    test = fill(tmp_path / "test", cow=1, yak=1)
    with pytest.raises(UserError, match=r"has the classes cow, yak but .* has ant, bee, cow: they"):
        open_pools(DataConfig(dataset=photos, test_dataset=test))
    with pytest.raises(UserError, match="has no labels: give images in class folders"):
        flat = tmp_path / "test" / "cow"
        open_pools(DataConfig(dataset=photos, test_dataset=f"folder:{flat}"))


def test_many_classes_that_are_unknown_are_cut_at_ten(tmp_path, photos):
    test = fill(tmp_path / "many", **{f"class_{number:02d}": 1 for number in range(15)})
    with pytest.raises(UserError, match=r"class_08, class_09 and 5 more but"):
        open_pools(DataConfig(dataset=photos, test_dataset=test))


def test_names_of_a_test_set_may_be_in_another_encoding(tmp_path):
    sets = []
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, "bär")
        sets.append(fill(tmp_path / form, **{name: 1, "ant": 1}))
    pools, _ = open_pools(
        DataConfig(dataset=sets[0], test_dataset=sets[1], unlabeled_dataset=sets[1])
    )
    assert pools["test"].classes is None and pools["unlabeled"].has_same_classes


def test_an_empty_class_is_refused_only_for_training(tmp_path, photos):
    empty = fill(tmp_path / "empty", ant=2, bee=0, cow=1)
    with pytest.raises(UserError, match="classes without images to train on: bee: fill them, or"):
        open_pools(DataConfig(dataset=empty))
    _, names = open_pools(DataConfig(dataset=empty), for_training=False)
    assert names == ["ant", "bee", "cow"]
    pools, _ = open_pools(DataConfig(dataset=photos, test_dataset=empty, unlabeled_dataset=empty))
    assert pools["test"].classes is None


def named(path, *names):
    path.write_text("\n".join(names) + "\n", encoding="utf-8")
    return str(path)


def labels_of(pools, name):
    pool = pools[name]
    return {image.id: pool.label(image) for image in pool.source.images(pool.split)}


def test_a_file_gives_the_order_of_the_classes(tmp_path, photos):
    test = fill(tmp_path / "test", bee=1, ant=1)
    config = DataConfig(
        dataset=photos,
        test_dataset=test,
        unlabeled_dataset=photos,
        class_names=named(tmp_path / "names.txt", "cow", "", " ant", "bee"),
    )
    pools, names = open_pools(config)
    assert names == ["cow", "ant", "bee"]
    expected = {"ant": 1, "bee": 2, "cow": 0}
    for pool in ("train", "unlabeled", "test"):
        for image_id, label in labels_of(pools, pool).items():
            assert label == expected[image_id.split("/")[0]]


def test_a_file_gives_the_names_of_numbers(tmp_path):
    path = tmp_path / "a.tfrecord"
    with record_files.RecordWriter(path) as writer:
        for number in range(3):
            writer.write(records.image_example(f"{number}", b"", number))
    names = named(tmp_path / "names.txt", "cow", "ant", "bee")
    pools, found = open_pools(DataConfig(dataset=f"tfrecord:{path}", class_names=names))
    assert found == ["cow", "ant", "bee"]
    assert labels_of(pools, "train") == {"0": 0, "1": 1, "2": 2}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cow", "ant"], r"--class_names=.*names.txt lacks bee, of --dataset=folder:.*: give"),
        (["cow", "ant", "bee", "yak"], "classes without images to train on: yak: fill them, or"),
        (["cow", "ant", "bee", "cow"], "has cow twice: remove one"),
        ([], "has no names: give one per line"),
    ],
)
def test_wrong_files_of_names_are_refused(tmp_path, photos, names, message):
    config = DataConfig(dataset=photos, class_names=named(tmp_path / "names.txt", *names))
    with pytest.raises(UserError, match=message):
        open_pools(config)
    with pytest.raises(UserError, match=r"cannot be read \(No such file or directory\)"):
        open_pools(DataConfig(dataset=photos, class_names=str(tmp_path / "missing")))
