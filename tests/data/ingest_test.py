"""Ingest: exact splits, no leaks between them, and everything left out is counted."""

import dataclasses
import io
import json
import re
import struct
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from PIL import Image

from nsk import progress
from nsk.config.data import DataConfig
from nsk.data import deep_images, records, shards, sources, spool
from nsk.data.decoding import decode_image
from nsk.data.ingest import describe, ingest, ingest_for_evaluation
from nsk.data.normalization import EXIF_ORIENTATION, normalize_image
from nsk.data.sources.source import SkippedFiles, Source, SourceImage
from nsk.errors import UserError

SPLITS = ("test", "dev", "labeled", "unlabeled")


def picture(number, kind="PNG", side=4, **options):
    """An encoded image with different pixels for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side + 2, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@dataclasses.dataclass
class GivenSource(Source):
    """A source of given images, in a different order each time."""

    class_names: list
    pools: dict
    order: np.random.Generator = dataclasses.field(default_factory=np.random.default_rng)
    ids_reveal_labels: bool = False
    label_hint: str = "give images in class folders"

    @property
    def splits(self):
        return tuple(self.pools)

    def images(self, split):
        pool = self.pools[split]
        return iter([pool[index] for index in self.order.permutation(len(pool))])


@pytest.fixture
def given(monkeypatch):
    """Sources by the names digits (the default --dataset), tfds:more and tfds:test."""
    named = {}
    monkeypatch.setattr(sources, "open_source", lambda name, *_, **__: named[name])
    return named


def pool(*per_class, start=0, prefix="train", labels=True):
    images = []
    for label, count in enumerate(per_class):
        for _ in range(count):
            number = start + len(images)
            known = label if labels else None
            images.append(SourceImage(f"{prefix}/{number}", picture(number), known))
    return images


def names(count):
    return [f"class {label}" for label in range(count)]


def read(folder, splits=SPLITS):
    """dict from split to a list of (id, label, encoded), in the order of the shards."""
    result = {}
    for split in splits:
        serialized = shards.ShardSet.load(folder / split).read().as_numpy_iterator()
        parsed = records.parse_images(tf.constant(list(serialized)))
        rows = zip(*(parsed[name].numpy() for name in ("id", "label", "encoded")), strict=True)
        result[split] = [(id.decode(), int(label), encoded) for id, label, encoded in rows]
    return result


def ids(folder):
    return {split: [id for id, _, _ in rows] for split, rows in read(folder).items()}


def run(folder, seed=0, **settings):
    """Ingests and checks the properties of every result."""
    counts = ingest(DataConfig(**settings), seed, folder)
    content = read(folder)
    digests = {
        split: {normalize_image(encoded).digest for _, _, encoded in rows}
        for split, rows in content.items()
    }
    for earlier, later in ((a, b) for a in SPLITS for b in SPLITS if a < b):
        assert not digests[earlier] & digests[later]
    for split, rows in content.items():
        assert counts["images"][split] == len(rows) > 0
        labels = [label for _, label, _ in rows]
        if split == "unlabeled":
            assert set(labels) == {-1}
            assert split not in counts["per_class"]
        else:
            expected = np.bincount(labels, minlength=counts["num_classes"]).tolist()
            assert counts["per_class"][split] == expected
        shard_set = shards.ShardSet.load(folder / split)
        assert list(shard_set.class_names) == counts["class_names"]
    assert {path.name for path in folder.iterdir()} <= {*SPLITS, "sealed"}
    json.dumps(counts)
    return counts


def refused(pattern, folder, **settings):
    with pytest.raises(UserError, match=pattern) as refusal:
        ingest(DataConfig(**settings), 0, folder)
    assert "\n" not in str(refusal.value)
    assert not list(folder.rglob("*.unfinished"))


def test_digits(tmp_path):
    counts = run(tmp_path, num_labeled=52, num_dev=100, images_per_shard=400)
    assert counts["images"] == {"test": 359, "dev": 100, "labeled": 52, "unlabeled": 1286}
    assert counts["per_class"]["labeled"] == [6, 6] + [5] * 8
    assert sum(counts["per_class"]["dev"]) == 100
    assert (counts["num_classes"], counts["image_side"], counts["reencoded"]) == (10, 8, 0)
    assert counts["corrupt"] == {"count": 0, "images": []}
    assert shards.ShardSet.load(tmp_path / "unlabeled").counts == (400, 400, 400, 86)
    truth = pq.read_table(tmp_path / "sealed" / "unlabeled_truth.parquet")
    assert str(truth.schema.field("id").type) == "string"
    assert str(truth.schema.field("label").type) == "int32"
    known = {image.id: image.label for image in sources.DigitsSource().images("train")}
    assert truth["id"].to_pylist() == ids(tmp_path)["unlabeled"]
    assert truth["label"].to_pylist() == [known[id] for id in truth["id"].to_pylist()]
    content = read(tmp_path)
    for split in ("labeled", "dev", "test"):
        assert all(known[id] == label for id, label, _ in content[split])


def test_labels_of_unlabelled_images_are_only_in_the_sealed_file(tmp_path):
    run(tmp_path, num_labeled=50, num_dev=50)
    for record in shards.ShardSet.load(tmp_path / "unlabeled").read().as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        assert sorted(features) == ["id", "image/encoded"]
    assert [path.name for path in (tmp_path / "sealed").iterdir()] == ["unlabeled_truth.parquet"]


def test_a_split_is_a_function_of_ids_and_seed(tmp_path, given):
    given["digits"] = GivenSource(names(3), {"train": pool(20, 20, 20)})
    settings = {"num_labeled": 9, "num_dev": 6}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / name, seed, **settings)
    a, b, c = (ids(tmp_path / name) for name in "abc")
    # The source yielded its images in another order, on which not even the shards depend.
    assert a == b
    # Another seed chooses other images, but the same test images.
    assert a["test"] == c["test"]
    for split in ("dev", "labeled", "unlabeled"):
        assert set(a[split]) != set(c[split])


def test_shards_are_mixed(tmp_path, given):
    given["digits"] = GivenSource(names(2), {"train": pool(100, 100)})
    run(tmp_path, num_labeled=80, num_dev=10)
    labels = np.array([label for _, label, _ in read(tmp_path)["labeled"]])
    assert 20 < np.count_nonzero(labels[1:] != labels[:-1]) < 60


def test_the_number_of_labelled_images_does_not_change_the_other_splits(tmp_path, given):
    given["digits"] = GivenSource(names(2), {"train": pool(40, 40)})
    run(tmp_path / "few", num_labeled=4, num_dev=10)
    run(tmp_path / "many", num_labeled=20, num_dev=10)
    few, many = ids(tmp_path / "few"), ids(tmp_path / "many")
    assert few["dev"] == many["dev"]
    assert set(few["labeled"]) < set(many["labeled"])


def test_fractions_are_proportional_to_the_classes(tmp_path, given):
    given["digits"] = GivenSource(names(3), {"train": pool(60, 30, 10)})
    counts = run(tmp_path, labeled_fraction=0.25, dev_fraction=0.25, test_fraction=0.2)
    assert counts["per_class"]["test"] == [12, 6, 2]
    assert counts["per_class"]["dev"] == [12, 6, 2]
    # A quarter of the same 80 images, though 60 are left: of 36, 18 and 6 in proportion.
    assert counts["per_class"]["labeled"] == [12, 6, 2]
    assert counts["images"]["unlabeled"] == 40


def test_a_labelled_share_has_an_image_of_each_class(tmp_path, given, caplog):
    """Shares of 9.4, 0.3 and 0.3 images; the total stays what was asked for."""
    given["digits"] = GivenSource(
        names(3), {"train": pool(94, 3, 3), "test": pool(2, 2, 2, start=200, prefix="test")}
    )
    dev = pool(5, 5, 5, start=300, prefix="dev")
    given["digits"].pools["dev"] = dev
    with caplog.at_level("INFO", logger="absl"):
        counts = run(tmp_path / "a", labeled_fraction=0.1)
    assert counts["per_class"]["labeled"] == [8, 1, 1]
    assert "--labeled_fraction: one labelled image each of class 1, class 2, which" in caplog.text
    assert counts["images"]["unlabeled"] == 90
    caplog.clear()
    with caplog.at_level("INFO", logger="absl"):
        assert run(tmp_path / "b", labeled_fraction=0.5)["per_class"]["labeled"] == [47, 2, 1]
    assert "one labelled image each" not in caplog.text
    refused("gives 2 labelled images but none of class 'class 1'", tmp_path, labeled_fraction=0.02)


def test_the_labelled_fraction_is_of_the_training_images_with_dev(tmp_path, given):
    given["digits"] = GivenSource(
        names(2), {"train": pool(50, 50), "test": pool(2, 2, start=200, prefix="test")}
    )
    given["tfds:more"] = GivenSource(names(2), {"train": pool(4, 4, start=300, prefix="more")})
    assert run(tmp_path / "a", labeled_fraction=0.1, num_dev=40)["images"]["labeled"] == 10
    # 1 means all images except dev; any other fraction is exact or refused.
    settings = {"num_dev": 40, "unlabeled_dataset": "tfds:more"}
    counts = run(tmp_path / "b", labeled_fraction=1.0, **settings)
    assert counts["images"]["labeled"] == 60
    refused("--labeled_fraction asks for 70 .* only 60", tmp_path, labeled_fraction=0.7, **settings)


def test_the_fractions_are_not_of_the_images_of_a_separate_dev_split(tmp_path, given):
    dev = pool(20, 20, start=100, prefix="dev")
    given["digits"] = GivenSource(names(2), {"train": pool(10, 15), "dev": dev})
    counts = run(tmp_path, labeled_fraction=0.5, dev_fraction=0.25)
    assert counts["images"] == {"test": 5, "dev": 10, "labeled": 10, "unlabeled": 10}


def test_the_splits_of_the_source_are_used_whole(tmp_path, given):
    given["digits"] = GivenSource(
        names(2),
        {
            "labeled": pool(3, 4),
            "unlabeled": pool(5, 5, start=100, prefix="unlabeled", labels=False),
            "dev": pool(2, 2, start=200, prefix="dev"),
            "test": pool(6, 1, start=300, prefix="test"),
        },
    )
    counts = run(tmp_path)
    assert counts["images"] == {"test": 7, "dev": 4, "labeled": 7, "unlabeled": 10}
    assert all(id.startswith("dev/") for id in ids(tmp_path)["dev"])
    assert not (tmp_path / "sealed").exists()
    assert not any(counts["unused"].values())
    # A requested number is chosen from the split, and the others are counted.
    counts = run(tmp_path / "fewer", num_labeled=4, num_dev=2)
    assert counts["unused"] == {"labeled": 3, "unlabeled": 0, "dev": 2, "test": 0}
    assert counts["images"] == {"test": 7, "dev": 2, "labeled": 4, "unlabeled": 10}
    assert counts["per_class"]["labeled"] == [2, 2]


def test_dev_and_test_are_taken_from_labelled_images_without_splits_of_their_own(tmp_path, given):
    unlabeled = pool(5, start=100, prefix="unlabeled", labels=False)
    given["digits"] = GivenSource(names(2), {"labeled": pool(10, 10), "unlabeled": unlabeled})
    counts = run(tmp_path, num_dev=4)
    assert counts["images"] == {"test": 4, "dev": 4, "labeled": 12, "unlabeled": 5}


def test_other_sources_of_test_and_unlabelled_images(tmp_path, given):
    given["digits"] = GivenSource(names(2), {"train": pool(20, 20), "test": pool(1, start=900)})
    given["tfds:test"] = GivenSource(names(2), {"train": pool(3, 3, start=100, prefix="other")})
    given["tfds:more"] = GivenSource(names(2), {"train": pool(4, 4, start=200, prefix="more")})
    settings = {"labeled_fraction": 1.0, "num_dev": 10, "unlabeled_dataset": "tfds:more"}
    counts = run(tmp_path / "a", test_dataset="tfds:test", **settings)
    assert counts["images"] == {"test": 6, "dev": 10, "labeled": 30, "unlabeled": 8}
    assert all(id.startswith("other/") for id in ids(tmp_path / "a")["test"])
    assert all(id.startswith("more/") for id in ids(tmp_path / "a")["unlabeled"])
    truth = pq.read_table(tmp_path / "a" / "sealed" / "unlabeled_truth.parquet")
    assert sorted(truth["label"].to_pylist()) == [0] * 4 + [1] * 4
    # Labels of other classes are not used.
    given["tfds:more"].class_names = ["something", "else"]
    run(tmp_path / "b", **settings)
    assert not (tmp_path / "b" / "sealed").exists()
    given["tfds:test"].class_names = ["something", "else"]
    refused("something, else.*class 0, class 1", tmp_path, test_dataset="tfds:test", **settings)


def test_every_image_is_in_a_split_or_counted(tmp_path, given):
    train = [*pool(20, 20), *pool(3, start=80, labels=False)]
    train += [same_pixels(image, f"{image.id}/copy", image.label) for image in train[:10]]
    train.append(SourceImage("broken", b"", 0))
    dev = pool(6, 6, start=100, prefix="dev") + pool(2, start=120, prefix="dev", labels=False)
    test = pool(4, 4, start=200, prefix="test") + pool(5, start=220, prefix="test", labels=False)
    given["digits"] = GivenSource(names(2), {"train": train, "dev": dev, "test": test})
    given["tfds:more"] = GivenSource(names(2), {"train": pool(7, start=300, prefix="more")})
    settings = {"num_labeled": 10, "num_dev": 4, "max_corrupt_fraction": 0.1}
    total = len(train) + len(dev) + len(test)
    for folder, unlabeled, expected in (("a", "", 0), ("b", "tfds:more", 43)):
        counts = run(tmp_path / folder, unlabeled_dataset=unlabeled, **settings)
        assert counts["unused"]["dev"] == 10 and counts["unused"]["test"] == 5
        assert counts["unused"]["train"] == expected
        parts = [counts["images"], counts["duplicates_removed"], counts["unused"]]
        summed = sum(sum(numbers.values()) for numbers in parts) + counts["corrupt"]["count"]
        assert summed == total + (7 if unlabeled else 0)
        assert any("Not used: 10 readable dev" in line for line in describe(counts))
        assert any("43 readable train" in line for line in describe(counts)) == bool(unlabeled)


def test_splits_that_are_not_used_are_counted(tmp_path, given):
    splits = {"train": pool(20, 20), "test": pool(3, 3, start=50, prefix="t")}
    given["digits"] = GivenSource(names(2), splits | {"unlabeled": pool(5, start=60, prefix="u")})
    more = {"unlabeled": pool(7, start=100, prefix="m"), "test": pool(2, start=110, prefix="m")}
    given["tfds:more"] = GivenSource(names(2), more)
    test = {"test": pool(4, 4, start=200, prefix="s"), "dev": pool(9, start=300, prefix="s")}
    given["tfds:test"] = GivenSource(names(2), test)
    settings = {"num_labeled": 10, "num_dev": 4}
    assert run(tmp_path / "a", **settings)["unused_splits"] == {}
    others = {"test_dataset": "tfds:test", "unlabeled_dataset": "tfds:more"}
    counts = run(tmp_path / "b", **others, **settings)
    assert counts["unused_splits"] == {
        "unlabeled of --dataset": 5,
        "test of --dataset": 6,
        "dev of --test_dataset": 9,
        "test of --unlabeled_dataset": 2,
    }
    assert "Not used: all 6 images of the split test of --dataset." in describe(counts)


def ids_by_source(folder, more):
    """Ids of unlabelled images, without their prefix, of the source `more` and of others."""
    found = ids(folder)["unlabeled"]
    assert len(set(found)) == len(found)
    prefix = "unlabeled_dataset/"
    of_more = {id.removeprefix(prefix) for id in found if id.startswith(prefix)}
    return of_more, {id for id in found if not id.startswith(prefix)}


def test_remaining_images_and_another_source_are_unlabelled_together(tmp_path, given):
    """Both have the same ids, and images with the same pixels."""
    train = pool(20, 20)
    more = pool(6, 6, start=300)
    more = [dataclasses.replace(image, id=train[row].id) for row, image in enumerate(more)]
    given["digits"] = GivenSource(names(2), {"train": train})
    given["tfds:more"] = GivenSource(names(2), {"train": more}, ids_reveal_labels=True)
    settings = {"num_labeled": 10, "num_dev": 4, "unlabeled_dataset": "tfds:more"}
    counts = run(tmp_path / "more", **settings)
    assert counts["images"]["unlabeled"] == 12 and counts["unused"]["train"] == 18
    (line,) = (line for line in describe(counts) if "18 readable train" in line)
    assert "--keep_remaining" in line
    counts = run(tmp_path / "both", keep_remaining=True, **settings)
    assert counts["images"] == {"test": 8, "dev": 4, "labeled": 10, "unlabeled": 18 + 12}
    assert counts["unused"]["train"] == 0 and not any(
        "Not used" in line for line in describe(counts)
    )
    # The other splits are the same, and the truth of both sources is sealed.
    for split in ("test", "dev", "labeled"):
        assert ids(tmp_path / "both")[split] == ids(tmp_path / "more")[split]
    truth = pq.read_table(tmp_path / "both/sealed/unlabeled_truth.parquet").to_pylist()
    known = {image.id: image.label for image in train}
    known |= {f"unlabeled_dataset/{image.id}": image.label for image in more}
    assert len(truth) == 30 and {row["id"] for row in truth} == set(
        ids(tmp_path / "both")["unlabeled"]
    )
    assert all(known[row["source_id"]] == row["label"] for row in truth)
    assert sum(row["source_id"].startswith("unlabeled_dataset/") for row in truth) == 12
    opaque = [row["id"] for row in truth if row["source_id"].startswith("unlabeled_dataset/")]
    assert all(id.startswith("image-") for id in opaque)


def test_no_image_of_two_sources_is_unlabelled_twice_or_in_an_earlier_split(tmp_path, given):
    train = pool(20, 20)
    given["digits"] = GivenSource(names(2), {"train": train})
    copies = [same_pixels(image, f"copy/{image.id}", None) for image in train]
    more = copies + pool(5, start=300, prefix="more", labels=False)
    given["tfds:more"] = GivenSource(None, {"train": more})
    settings = {"num_labeled": 10, "num_dev": 4, "unlabeled_dataset": "tfds:more"}
    counts = run(tmp_path, keep_remaining=True, **settings)
    assert counts["images"]["unlabeled"] == 18 + 5
    assert counts["duplicates_removed"]["unlabeled"] == 40
    of_more, remaining = ids_by_source(tmp_path, more)
    assert of_more == {image.id for image in more[40:]}
    assert remaining == {image.id for image in train} - {
        id for split in ("test", "dev", "labeled") for id in ids(tmp_path)[split]
    }


def test_groups_hold_for_remaining_images_and_another_source(tmp_path, given):
    """Groups of five images; none of a group in dev, test or labelled images is unlabelled."""
    groups = {f"train/{number}": f"g{number // 5}" for number in range(60)}
    train = [dataclasses.replace(image, group=groups[image.id]) for image in pool(30, 30)]
    more = [dataclasses.replace(image, group="g3") for image in pool(2, start=300, prefix="more")]
    more += pool(3, start=310, prefix="other")
    given["digits"] = GivenSource(names(2), {"train": train})
    given["tfds:more"] = GivenSource(names(2), {"train": more})
    settings = {"num_labeled": 10, "num_dev": 10, "unlabeled_dataset": "tfds:more"}
    for seed in range(3):
        folder = tmp_path / str(seed)
        run(folder, seed, keep_remaining=True, **settings)
        of_more, remaining = ids_by_source(folder, more)
        earlier = {groups[id] for split in SPLITS[:3] for id in ids(folder)[split]}
        assert remaining == {id for id in groups if groups[id] not in earlier} != set()
        expected = {image.id for image in more if image.group not in earlier}
        assert of_more == expected


def test_a_folder_with_unlabelled_images_and_a_rest_of_train(tmp_path):
    root = tmp_path / "photos"
    for number in range(30):
        image = Image.open(io.BytesIO(picture(number)))
        save(root / "train" / f"{number % 2}" / f"{number}.png", image, "PNG")
        save(root / "extra" / f"{number}.png", Image.open(io.BytesIO(picture(100 + number))), "PNG")
    settings = {"dataset": f"folder:{root}", "num_labeled": 10, "num_dev": 4}
    counts = run(tmp_path / "a", **settings)
    assert counts["images"]["unlabeled"] == 30 and counts["unused"]["train"] == 10
    counts = run(tmp_path / "b", keep_remaining=True, **settings)
    assert counts["images"]["unlabeled"] == 40 and counts["unused"]["train"] == 0
    truth = pq.read_table(tmp_path / "b/sealed/unlabeled_truth.parquet")
    assert len(truth) == 10
    assert {id for id in ids(tmp_path / "b")["unlabeled"] if "/" in id} == {
        f"extra/{number}.png" for number in range(30)
    }


def same_pixels(image, id, label):
    """The same image in other bytes."""
    with Image.open(io.BytesIO(image.encoded)) as opened:
        buffer = io.BytesIO()
        opened.save(buffer, "BMP")
    return SourceImage(id, buffer.getvalue(), label)


def test_no_two_splits_have_images_with_the_same_pixels(tmp_path, given):
    test = pool(5, 5, start=500, prefix="test")
    dev = pool(5, 5, start=600, prefix="dev")
    labeled = pool(5, 5)
    unlabeled = pool(10, start=700, prefix="unlabeled", labels=False)
    # One dev image is also in test, one labelled image in test, another in dev, and so on.
    dev.append(same_pixels(test[0], "dev/copy", 0))
    labeled.append(same_pixels(test[1], "labeled/copy1", 0))
    labeled.append(same_pixels(dev[1], "labeled/copy2", 1))
    for number, image in enumerate((test[2], dev[2], labeled[2])):
        unlabeled.append(same_pixels(image, f"unlabeled/copy{number}", None))
    pools = {"test": test, "dev": dev, "labeled": labeled, "unlabeled": unlabeled}
    given["digits"] = GivenSource(names(2), pools)
    counts = run(tmp_path)
    assert counts["duplicates_removed"] == {"test": 0, "dev": 1, "labeled": 2, "unlabeled": 3}
    assert counts["images"] == {"test": 10, "dev": 10, "labeled": 10, "unlabeled": 10}
    assert counts["reencoded"] == 6  # The copies, although they are in no split.


def test_duplicates_do_not_change_the_requested_numbers(tmp_path, given):
    images = pool(30, 30)
    images += [same_pixels(image, f"{image.id}/copy", image.label) for image in images]
    given["digits"] = GivenSource(names(2), {"train": images})
    counts = run(tmp_path, num_labeled=10, num_dev=7)
    assert counts["per_class"]["labeled"] == [5, 5]
    assert counts["images"]["dev"] == 7
    removed = counts["duplicates_removed"]
    assert all(removed[split] > 0 for split in ("dev", "labeled", "unlabeled"))
    # Every image is in a split or counted as removed.
    assert sum(counts["images"].values()) + sum(removed.values()) == 120


def test_messages_of_decoders_are_replaced_by_names_of_files(tmp_path, capfd):
    random = np.random.default_rng(0)
    for number in range(20):
        folder = tmp_path / "photos" / f"{number % 2}"
        pixels = Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        save(folder / f"{number}.jpg", pixels, "JPEG")
    path = tmp_path / "photos/1/7.jpg"
    content = bytearray(path.read_bytes())
    content[-900:-20:40] = bytes(22)
    path.write_bytes(content)
    config = DataConfig(dataset=f"folder:{tmp_path}/photos", num_labeled=4, num_dev=4)
    counts = ingest(config, 0, tmp_path / "run")
    assert counts["corrupt"]["count"] == 0
    (image,) = counts["doubtful"]["images"]
    assert image["id"] == "1/7.jpg" and image["reason"].startswith("Corrupt JPEG data")
    assert "Corrupt" not in capfd.readouterr().err


def test_the_same_pixels_under_several_labels(tmp_path, given):
    images = pool(20, 20)
    images.append(same_pixels(images[0], "copy", 1))
    given["digits"] = GivenSource(names(2), {"train": images})
    counts = run(tmp_path / "keep", num_labeled=10, num_dev=7)
    assert counts["conflicts"]["images"] == 2 and counts["conflicts"]["dropped"] == 0
    config = DataConfig(num_labeled=10, num_dev=7, conflicting_labels="drop")
    counts = ingest(config, 0, tmp_path / "drop")
    assert counts["conflicts"]["dropped"] == 2
    assert not {images[0].id, "copy"} & {
        row[0] for rows in read(tmp_path / "drop").values() for row in rows
    }


def save(path, image, kind, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, kind, **options)


def test_mixed_formats_from_a_folder(tmp_path):
    root = tmp_path / "images"
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    for number, name in enumerate(["cat", "dog"] * 10):
        image = Image.open(io.BytesIO(picture(number, side=12)))
        save(root / name / f"{number}.png", image, "PNG")
        save(root / name / f"j{number}.jpg", image, "JPEG")
    rotated = Image.open(io.BytesIO(picture(99, side=12)))
    save(root / "cat" / "rotated.png", rotated, "PNG", exif=exif)
    save(root / "cat" / "bits.bmp", rotated.convert("1"), "BMP")
    save(root / "dog" / "palette.gif", rotated.quantize(8), "GIF")
    save(root / "dog" / "cmyk.jpg", rotated.convert("CMYK"), "JPEG")
    (root / "dog" / "broken.png").write_bytes(b"not an image")
    (root / "dog" / "cut.jpg").write_bytes(picture(5, "JPEG", side=40)[:-200])
    (root / "dog" / "nothing.jpg").write_bytes(b"")
    save(root / "cat" / "new.webp", Image.open(io.BytesIO(picture(98, side=12))), "WEBP")
    save(root / "dog" / "no_suffix", Image.open(io.BytesIO(picture(97, side=12))), "TIFF")
    for name in ("cat/old.csv", "dog/notes.txt", "notes.txt", ".hidden"):
        (root / name).write_bytes(b"anything")
    settings = {"dataset": f"folder:{root}", "num_labeled": 10, "num_dev": 10}
    counts = run(tmp_path / "out", **settings, max_corrupt_fraction=0.1)
    assert counts["class_names"] == ["cat", "dog"]
    assert counts["reencoded"] == 6
    assert counts["image_side"] == 12
    assert counts["other_files"] == 3
    lines = describe(counts)
    assert "Not read: 3 files that are not images: .txt 2, .csv 1." in lines
    assert "Skipped: 1 hidden files or files of an operating system: .hidden 1." in lines
    assert sum(counts["images"].values()) == 46
    assert counts["corrupt"]["count"] == 3
    reasons = {image["id"]: image["reason"] for image in counts["corrupt"]["images"]}
    assert set(reasons) == {"dog/broken.png", "dog/cut.jpg", "dog/nothing.jpg"}
    assert "cannot identify" in reasons["dog/broken.png"]
    assert "truncated" in reasons["dog/cut.jpg"]
    truth = pq.read_table(tmp_path / "out" / "sealed" / "unlabeled_truth.parquet").to_pylist()
    paths = {row["id"]: row["source_id"] for row in truth}
    rows = [row for rows in read(tmp_path / "out").values() for row in rows]
    written = {paths.get(id, id): encoded for id, _, encoded in rows}
    assert len(written) == 46
    for id, encoded in written.items():
        pixels = decode_image(tf.constant(encoded), 12).numpy()
        assert pixels.shape == (12, 12, 3)
        if id.startswith(("cat/1", "dog/j")):
            assert encoded == (root / id).read_bytes()
    with Image.open(io.BytesIO(written["cat/rotated.png"])) as upright:
        np.testing.assert_array_equal(np.asarray(upright), np.rot90(np.asarray(rotated), -1))
    refused("3 of 49 images.*max_corrupt_fraction=0.05.*dog/", tmp_path / "no", **settings,
            max_corrupt_fraction=0.05)  # fmt: skip


def test_ids_of_unlabelled_images_do_not_reveal_their_class(tmp_path):
    root = tmp_path / "images"
    for number in range(40):
        image = Image.open(io.BytesIO(picture(number)))
        save(root / ("cat", "dog")[number % 2] / f"{number}.png", image, "PNG")
    run(tmp_path / "out", dataset=f"folder:{root}", num_labeled=4, num_dev=4)
    content = read(tmp_path / "out")
    truth = pq.read_table(tmp_path / "out" / "sealed" / "unlabeled_truth.parquet").to_pylist()
    assert [row["id"] for row in truth] == [id for id, _, _ in content["unlabeled"]]
    for row, (id, _, encoded) in zip(truth, content["unlabeled"], strict=True):
        assert re.fullmatch("image-[0-9a-f]{32}", id)
        assert (root / row["source_id"]).read_bytes() == encoded
        assert row["source_id"].startswith(("cat/", "dog/")[row["label"]])
    assert len({row["id"] for row in truth}) == len(truth)
    for path in (tmp_path / "out" / "unlabeled").iterdir():
        # The manifest lists the classes.
        assert b"cat" not in path.read_bytes().replace(b'"cat"', b"")
    for split in ("labeled", "dev", "test"):
        assert all((root / id).is_file() for id, _, _ in content[split])


def test_ids_of_images_without_known_labels_are_kept(tmp_path, given):
    more = pool(5, start=100, prefix="more", labels=False)
    source = GivenSource(
        names(2), {"labeled": pool(9, 9), "unlabeled": more}, ids_reveal_labels=True
    )
    given["digits"] = source
    run(tmp_path, num_dev=4)
    assert set(ids(tmp_path)["unlabeled"]) == {image.id for image in more}


def test_image_sizes(tmp_path, given):
    small = [SourceImage(f"small/{n}", picture(n, side=3), n % 2) for n in range(20)]
    large = [SourceImage(f"large/{n}", picture(n, side=9), n % 2) for n in range(20)]
    given["digits"] = GivenSource(names(2), {"train": small})
    settings = {"num_labeled": 4, "num_dev": 4}
    counts = run(tmp_path / "same", **settings)
    assert counts["image_side"] == 3
    assert counts["image_sizes"] == {"smallest": 3, "largest": 3}
    assert "shorter side 3 pixels" in describe(counts)[0]
    given["digits"] = GivenSource(names(2), {"train": small + large})
    counts = run(tmp_path / "mixed", **settings)
    assert counts["image_side"] is None
    assert counts["image_sizes"] == {"smallest": 3, "largest": 9}
    assert "shorter sides from 3 to 9 pixels" in describe(counts)[0]


@pytest.mark.parametrize(
    ("sizes", "mean", "above_half"),
    [
        ([(30, 30)] * 20, 0.0, 0.0),
        ([(30, 20), (20, 30)] * 10, 1 / 3, 0.0),  # 3:2, lying and upright.
        ([(40, 10)] * 5 + [(20, 10)] * 5 + [(10, 10)] * 10, (0.75 + 0.5) / 4, 0.25),
    ],
)
def test_pixels_outside_of_the_central_square(tmp_path, given, sizes, mean, above_half):
    images = []
    for number, (width, height) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width)).astype(np.uint8)
        images.append(SourceImage(f"{number}", encode_array(pixels), number % 2))
    given["digits"] = GivenSource(names(2), {"train": images})
    counts = run(tmp_path, num_labeled=4, num_dev=4)
    assert counts["outside_square"]["mean"] == pytest.approx(mean, abs=1e-4)
    assert counts["outside_square"]["above_half"] == above_half


def encode_array(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def deep_levels(number, bits):
    """uint16 (5, 5) with a level of as many bits."""
    levels = np.random.default_rng(number).integers(0, 2**bits, (5, 5)).astype(np.uint16)
    levels[2, 2] = 2 ** (bits - 1) + number
    return levels


def images_of_bits(*bits, prefix="", kind="PNG"):
    return [
        SourceImage(f"{prefix}{n}", encode_array(deep_levels(n, b), kind), n % 2)
        for n, b in enumerate(bits)
    ]


def pixels_by_id(folder):
    return {
        id: decode(encoded)[..., 0] for rows in read(folder).values() for id, _, encoded in rows
    }


def decode(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("bits", "expected"), [([10] * 19 + [12], 12), ([9] * 19 + [4], 9), ([6] * 20, 8)]
)
def test_16_bit_images_are_scaled_by_the_bits_that_all_of_them_use(
    tmp_path, given, kind, bits, expected
):
    """Of every split, and together with images of 8 bits, which stay as they are."""
    images = images_of_bits(*bits, kind=kind)
    plain = pool(4, 4, prefix="plain")
    test = images_of_bits(*[7] * 6, prefix="test", kind=kind)
    given["digits"] = GivenSource(names(2), {"train": images + plain, "test": test})
    counts = run(tmp_path, num_labeled=4, num_dev=4)
    assert counts["significant_bits"] == expected
    assert counts["deep_images"]["count"] == 26 and counts["deep_images"]["clipped"] == 0
    found = pixels_by_id(tmp_path)
    for number, own_bits in enumerate(bits):
        levels = deep_levels(number, own_bits) * 255.0 / (2**expected - 1)
        np.testing.assert_array_equal(found[f"{number}"], np.round(levels))
    levels = deep_levels(2, 7) * 255.0 / (2**expected - 1)
    np.testing.assert_array_equal(found["test2"], np.round(levels))
    for image in plain:
        np.testing.assert_array_equal(found[image.id], decode(image.encoded)[..., 0])
    (line,) = [line for line in describe(counts) if line.startswith("16-bit images: 26")]
    assert f"they use {expected} bits, and {2**expected - 1:,} is white" in line


def test_scaled_images_are_compared_by_their_pixels(tmp_path, given):
    """A 12-bit image is a duplicate of its 8-bit version."""
    images = images_of_bits(*[12] * 20)
    levels = np.round(deep_levels(0, 12) * 255.0 / 4095).astype(np.uint8)
    same = SourceImage("same", encode_array(levels), 0)
    given["digits"] = GivenSource(names(2), {"train": images, "test": [same, *pool(2, 2)]})
    counts = run(tmp_path, num_labeled=4, num_dev=4)
    assert sum(counts["duplicates_removed"].values()) == 1
    assert "0" not in pixels_by_id(tmp_path)


def test_few_dark_images_among_16_bit_ones_are_no_reason_to_warn(tmp_path, given):
    given["digits"] = GivenSource(names(2), {"train": images_of_bits(*[16] * 39, 11)})
    counts = run(tmp_path, num_labeled=4, num_dev=4)
    assert counts["significant_bits"] == 16
    assert not deep_images.warning(counts["deep_images"], 16)
    assert any(line.endswith("65,535 is white.") for line in describe(counts))


def test_dark_images_that_are_scaled_by_the_bits_of_others_are_named(tmp_path, given):
    given["digits"] = GivenSource(names(2), {"train": images_of_bits(*[12] * 4, *[16] * 26)})
    counts = run(tmp_path, num_labeled=4, num_dev=4)
    assert counts["significant_bits"] == 16
    np.testing.assert_array_equal(pixels_by_id(tmp_path)["1"], np.round(deep_levels(1, 12) / 257.0))
    assert counts["deep_images"]["dark"]["count"] == 4
    line = deep_images.warning(counts["deep_images"], 16)
    highest = max(deep_levels(n, 12).max() for n in range(4))
    assert line.startswith(
        f"4 of 30 16-bit images look nearly black: their levels are at most {highest:,} "
        "(0, 1, 2, ...), but others reach 65,"
    )
    assert line.endswith("or --significant_bits=12 if 4,095 is white in all of them.")


def test_given_bits_are_used_and_higher_levels_counted(tmp_path, given):
    given["digits"] = GivenSource(names(2), {"train": images_of_bits(*[12] * 19, 15)})
    counts = run(tmp_path, num_labeled=4, num_dev=4, significant_bits=12)
    assert counts["significant_bits"] == 12 and counts["deep_images"]["clipped"] == 1
    levels = np.minimum(deep_levels(19, 15) * 255.0 / 4095, 255)
    np.testing.assert_array_equal(pixels_by_id(tmp_path)["19"], np.round(levels))
    assert "1 of them have higher levels" in "\n".join(describe(counts))


def test_scores_of_an_external_teacher_stay_with_scaled_images(tmp_path, given):
    scored = [
        dataclasses.replace(image, external_teacher=(0, 0.5 + number / 20), label=None)
        for number, image in enumerate(images_of_bits(*[12] * 6, prefix="u"))
    ]
    given["digits"] = GivenSource(names(2), {"train": pool(20, 20)})
    given["tfds:more"] = GivenSource(names(2), {"unlabeled": scored})
    counts = run(tmp_path, num_labeled=4, num_dev=4, unlabeled_dataset="tfds:more")
    assert counts["external_teacher"] == 6 and counts["significant_bits"] == 12
    shard_set = shards.ShardSet.load(tmp_path / "unlabeled")
    ids, found = records.parse_external_log_probabilities(shard_set.records(0), 2)
    probabilities = {id: np.exp(row[0]) for id, row in zip(ids, found, strict=True)}
    assert probabilities == pytest.approx({f"u{n}": 0.5 + n / 20 for n in range(6)}, abs=1e-3)


def large_png(side, bits):
    """A PNG of zeros, few bytes for many pixels, in one or eight bits each."""

    def chunk(name, data):
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(side * (1 + side * bits // 8))))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def test_too_large_images_are_listed_as_corrupt(tmp_path, given):
    large = [large_png(12_000, 1), large_png(12_000, 8), picture(0, "BMP", side=300)]
    images = [SourceImage(f"large/{n}", encoded, 0) for n, encoded in enumerate(large)]
    given["digits"] = GivenSource(names(2), {"train": pool(20, 20) + images})
    max_bytes = max(map(len, large[:2]))
    assert max_bytes < 200_000
    settings = {"num_labeled": 4, "num_dev": 4, "max_corrupt_fraction": 0.1}
    counts = run(tmp_path, max_image_bytes=max_bytes, **settings)
    reasons = {image["id"]: image["reason"] for image in counts["corrupt"]["images"]}
    assert reasons == {
        "large/0": "12,000 x 12,000 pixels are more than --max_image_pixels=100000000",
        "large/1": "12,000 x 12,000 pixels are more than --max_image_pixels=100000000",
        "large/2": f"it has more bytes than --max_image_bytes={max_bytes}",
    }


def test_few_labelled_images_are_written_into_many_shards(tmp_path, given):
    given["digits"] = GivenSource(names(2), {"train": pool(500, 500)})
    sets = {}
    for limit in (4096, 10):
        run(tmp_path / str(limit), num_labeled=400, num_dev=4, images_per_shard=limit)
        for split in ("labeled", "unlabeled"):
            shard_set = shards.ShardSet.load(tmp_path / str(limit) / split)
            sets[limit, split] = (len(shard_set.names), max(shard_set.counts))
    assert sets[4096, "labeled"] == (16, 25) and sets[4096, "unlabeled"][0] == 1
    assert sets[10, "labeled"] == (40, 10)
    run(tmp_path / "few", num_labeled=20, num_dev=4)
    assert shards.ShardSet.load(tmp_path / "few/labeled").counts == (16, 4)


def test_shards_are_full_at_their_size(tmp_path, given):
    """Pictures of random pixels, 750 KB as PNGs: two of them reach a mebibyte."""
    images = [SourceImage(f"large/{n}", picture(n, "PNG", side=500), n % 2) for n in range(20)]
    given["digits"] = GivenSource(names(2), {"train": images})
    run(tmp_path, num_labeled=4, num_dev=4, test_fraction=0.2, shard_mebibytes=1)
    unlabeled = shards.ShardSet.load(tmp_path / "unlabeled")
    assert set(unlabeled.counts[:-1]) == {2}


def test_at_most_100_corrupt_images_are_listed(tmp_path, given):
    broken = [SourceImage(f"broken/{number}", b"", 0) for number in range(120)]
    given["digits"] = GivenSource(names(2), {"train": pool(20, 20) + broken})
    counts = run(tmp_path, num_labeled=4, num_dev=4, max_corrupt_fraction=0.9)
    assert counts["corrupt"]["count"] == 120
    assert len(counts["corrupt"]["images"]) == 100


def test_ingested_shards_can_be_ingested(tmp_path):
    run(tmp_path / "a", num_labeled=50, num_dev=50)
    pattern = f"tfrecord:{tmp_path}/a/test/*.tfrecord"
    counts = run(tmp_path / "b", num_labeled=20, num_dev=20, dataset=pattern)
    assert counts["class_names"] == [str(digit) for digit in range(10)]
    assert counts["images"] == {"test": 72, "dev": 20, "labeled": 20, "unlabeled": 247}


def test_too_few_images_are_refused(tmp_path, given):
    given["digits"] = GivenSource(names(2), {"train": pool(40, 10)})  # 32 and 8 without test.
    refused("No dev split.*--num_dev", tmp_path, num_labeled=2)
    refused("No labelled split.*--num_labeled", tmp_path, num_dev=5)
    refused("--num_dev asks for 41 dev images but only 40", tmp_path, num_labeled=2, num_dev=41)
    refused("--num_labeled asks for 31 .* only 30", tmp_path, num_labeled=31, num_dev=10)
    # 6 of the second class are left; the message gives the largest possible number.
    refused("needs 7 labeled images of class 'class 1' but only 6 .* lower it to 12", tmp_path,
            num_labeled=14, num_dev=10)  # fmt: skip
    assert ingest(DataConfig(num_labeled=12, num_dev=10), 0, tmp_path / "fits")
    refused("none of class 'class 1'", tmp_path, num_labeled=1, num_dev=10)
    refused("--dev_fraction leaves no dev", tmp_path, num_labeled=1, dev_fraction=0.001)


def test_images_without_labels_are_refused(tmp_path, given):
    settings = {"num_labeled": 2, "num_dev": 2}
    given["digits"] = GivenSource(None, {"unlabeled": pool(5, labels=False)})
    refused("has no labels", tmp_path, **settings)
    given["digits"] = GivenSource(names(1), {"train": pool(9)})
    refused("has only one class", tmp_path, **settings)
    given["digits"] = GivenSource(names(2), {"test": pool(9, 9)})
    refused("has only test", tmp_path, **settings)
    test = pool(5, start=50, prefix="test", labels=False)
    given["digits"] = GivenSource(names(2), {"train": pool(9, 9), "test": test})
    refused("No test images: of the 5 .* none has a label", tmp_path, **settings)
    same = [dataclasses.replace(image, id=f"dev/{image.id}") for image in pool(2, 2, start=50)]
    test = pool(2, 2, start=50, prefix="test")
    given["digits"] = GivenSource(names(2), {"train": pool(9, 9), "test": test, "dev": same})
    refused("No dev images: .* 4 duplicates", tmp_path, num_labeled=2)


def test_images_without_a_label_are_only_used_as_unlabelled(tmp_path, given):
    images = pool(20, 20) + pool(10, start=100, prefix="more", labels=False)
    given["digits"] = GivenSource(names(2), {"train": images})
    run(tmp_path, num_labeled=4, num_dev=4)
    more = {f"more/{number}" for number in range(100, 110)}
    unlabeled = set(ids(tmp_path)["unlabeled"])
    assert more < unlabeled
    truth = pq.read_table(tmp_path / "sealed" / "unlabeled_truth.parquet")
    assert set(truth["id"].to_pylist()) == unlabeled - more


def test_ids_must_be_unique(tmp_path, given):
    images = pool(9, 9)
    images.append(dataclasses.replace(images[3], encoded=picture(77)))
    given["digits"] = GivenSource(names(2), {"train": images})
    refused("'train/3' is duplicated in train", tmp_path, num_labeled=2, num_dev=2)


def test_progress_has_a_total_if_all_sources_know_theirs(tmp_path, given, monkeypatch, capsys):
    monkeypatch.setattr(progress, "EARLY_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LOG_INTERVAL_SECONDS", 0.0)
    given["digits"] = GivenSource(names(2), {"train": pool(20, 20)})
    given["tfds:more"] = GivenSource(names(2), {"train": pool(7, start=300, prefix="more")})
    settings = {"num_labeled": 4, "num_dev": 4, "unlabeled_dataset": "tfds:more"}
    run(tmp_path / "unknown", **settings)
    first, *_ = lines = capsys.readouterr().err.splitlines()
    assert first.startswith("data/images, reading: 16 images, ")
    assert any(line.startswith("data/images, reading: 47 images in ") for line in lines)
    assert any(line.startswith("data/images, writing: 100% 23/23 images") for line in lines)
    for source in given.values():
        source.count = lambda split, source=source: len(source.pools[split])
    run(tmp_path / "known", **settings)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("data/images, reading:  34% 16/47 images, ")
    assert any(line.startswith("data/images, reading: 100% 47/47 images") for line in lines)


def test_images_are_read_in_parts_of_half_a_second(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(spool.time, "monotonic", lambda: now[0])
    images = (SourceImage(str(number), b"", None) for number in range(2000))
    sizes = []
    for chunk in spool._chunks(images):
        sizes.append(len(chunk))
        now[0] += len(chunk) * (0.001 if sum(sizes) < 1000 else 0.01)
    assert sum(sizes) == 2000
    assert sizes[:5] == [16, 32, 64, 128, 256] and set(sizes[8:-1]) == {50}


def test_everything_left_out_is_described():
    counts = {
        "images": {"test": 1000, "dev": 4},
        "num_classes": 3,
        "class_names": ["a", "b", "c"],
        "per_class": {"test": [400, 300, 300], "dev": [2, 1, 1]},
        "image_side": 8,
        "deep_images": None,
        "reencoded": 5,
        "duplicates_removed": {"test": 0, "dev": 7},
        "removed_by_group": {"test": 0, "dev": 0},
        "conflicts": {"images": 8, "dropped": 3, "named": ["a (0), b (1)"] * 4},
        "unused": {"train": 6},
        "unused_splits": {},
        "other_files": 9,
        "skipped": {
            **dataclasses.asdict(SkippedFiles()),
            "others": {".txt": 9},
        },
        "corrupt": {
            "count": 4,
            "images": [{"id": f"{i}.png", "reason": "broken"} for i in range(4)],
        },
        "doubtful": {"count": 1, "images": [{"id": "9.jpg", "reason": "bad Huffman code"}]},
    }
    lines = describe(counts)
    images, classes, duplicates, conflicts, unused, other_files, corrupt, doubtful = lines
    assert "a: 400/2" in classes
    assert "shorter side 8 pixels" in images
    assert "1,000 test, 4 dev" in images and "5 were re-encoded" in images
    assert "Left out of dev: 7" in duplicates
    assert "8 images, of which 3 are left out" in conflicts and "a (0), b (1); ..." in conflicts
    assert "6" in unused and "train" in unused and "9 files" in other_files
    assert "4 that cannot be read" in corrupt and "0.png (broken)" in corrupt and "..." in corrupt
    assert doubtful.endswith("damaged: 1, listed in stage.json: 9.jpg (bad Huffman code).")
    counts["corrupt"] = {"count": 0, "images": []}
    assert len(describe(counts)) == 7
    counts["skipped"]["without_label"] = {"dev": 3}
    line = "Not used: 3 images of dev that have no label in the table of --labels. --unlabeled_dat"
    assert any(found.startswith(line) for found in describe(counts))
    counts["removed_by_group"]["dev"] = 3
    lines = describe(counts)
    assert (
        "Left out of dev: 4 with the same pixels as an image of an earlier split or source."
        in lines
    )
    assert "Left out of dev: 3 of the group of an image of an earlier split." in lines


@pytest.mark.parametrize("values", [{"num_dev": 4}, {"dev_fraction": 0.2}])
def test_images_of_an_evaluation_are_those_of_a_run(tmp_path, given, values):
    given["digits"] = GivenSource(names(2), {"train": pool(15, 15)})
    config = DataConfig(num_labeled=6, test_fraction=0.3, **values)
    ingest(config, 5, tmp_path / "run")
    counts = ingest_for_evaluation(config, 5, tmp_path / "evaluation")
    assert list(counts["images"]) == ["test", "dev"]
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == ["dev", "test"]
    expected = read(tmp_path / "run")
    found = read(tmp_path / "evaluation", ("test", "dev"))
    assert found["test"] == expected["test"] and found["dev"] == expected["dev"]
    assert describe(counts)[0].startswith(f"Images: 9 test, {counts['images']['dev']} dev; 2 cl")


def test_an_evaluation_without_dev_reads_the_test_images_alone(tmp_path, given):
    source = GivenSource(names(2), {"train": pool(5, 5), "test": pool(3, 4, start=20, prefix="t")})
    read_splits, images = [], source.images
    source.images = lambda split: (read_splits.append(split), images(split))[1]
    given["digits"] = source
    counts = ingest_for_evaluation(DataConfig(), 0, tmp_path)
    assert counts["images"] == {"test": 7} and read_splits == ["test"]


def test_an_evaluation_needs_no_training_images(tmp_path, given):
    given["digits"] = GivenSource(names(2), {"test": pool(3, 4)})
    assert ingest_for_evaluation(DataConfig(), 0, tmp_path)["images"] == {"test": 7}
    with pytest.raises(UserError, match="it needs class folders"):
        ingest(DataConfig(num_dev=2, num_labeled=2), 0, tmp_path / "run")


@pytest.mark.parametrize("values", [{}, {"num_dev": 3}])
def test_test_images_of_an_evaluation_are_taken_from_a_labeled_split(tmp_path, given, values):
    splits = {"labeled": pool(10, 10, prefix="l"), "dev": pool(4, 4, start=20, prefix="d")}
    unlabeled = pool(9, start=40, prefix="u", labels=False)
    given["digits"] = GivenSource(names(2), {**splits, "unlabeled": unlabeled})
    ingest(DataConfig(**values), 0, tmp_path / "run")
    ingest_for_evaluation(DataConfig(**values), 0, tmp_path / "evaluation")
    found, expected = read(tmp_path / "evaluation", ("test", "dev")), read(tmp_path / "run")
    assert {split: expected[split] for split in found} == found and len(found["test"]) == 4


def test_the_only_labelled_images_are_evaluated(tmp_path, given, caplog):
    """As of a folder that has nothing but ImageNet's val."""
    unlabeled = pool(9, start=40, prefix="u", labels=False)
    given["digits"] = GivenSource(names(2), {"dev": pool(3, 4), "unlabeled": unlabeled})
    with caplog.at_level("INFO", "absl"):
        assert ingest_for_evaluation(DataConfig(), 0, tmp_path)["images"] == {"test": 7}
    assert "has only dev, unlabeled: its dev images are the test ones" in caplog.text


@pytest.mark.parametrize("split", ["dev", "test"])
def test_an_evaluation_without_images_for_dev_is_refused(tmp_path, given, split):
    given["digits"] = GivenSource(names(2), {split: pool(3, 4)})
    for flag, value in (("num_dev", 2), ("dev_fraction", 0.5)):
        with pytest.raises(UserError, match=f"--{flag}: --dataset=digits has only {split}, which"):
            ingest_for_evaluation(DataConfig(**{flag: value}), 0, tmp_path / "e")


@pytest.mark.parametrize("values", [{}, {"test_dataset": "tfds:test"}])
def test_16_bit_images_of_an_evaluation_are_scaled_as_in_a_run(tmp_path, given, values):
    """Also by the levels of images that are not read otherwise."""
    test = GivenSource(names(2), {"test": images_of_bits(*[11] * 6, prefix="t")})
    train = {"train": images_of_bits(*[11] * 19, 12)}
    given["digits"] = GivenSource(names(2), train if values else train | test.pools)
    given["tfds:test"] = test
    run(tmp_path / "run", num_labeled=4, num_dev=4, **values)
    counts = ingest_for_evaluation(DataConfig(**values), 0, tmp_path / "evaluation")
    assert counts["significant_bits"] == 12 and counts["images"] == {"test": 6}
    assert counts["deep_images"]["count"] == 6
    assert counts["deep_images"]["highest"] == deep_levels(19, 12).max()
    assert read(tmp_path / "evaluation", ("test",))["test"] == read(tmp_path / "run")["test"]


def test_groups_of_an_evaluation_are_joined_as_in_a_run(tmp_path, given):
    """A training image has the pixels of a test image, and is of a group of dev."""
    test, dev = pool(3, 3, prefix="t"), pool(4, 4, start=20, prefix="d")
    dev[0] = dataclasses.replace(dev[0], group="g")
    joining = dataclasses.replace(test[0], id="joining", group="g")
    splits = {"train": [*pool(9, 9, start=40), joining], "dev": dev, "test": test}
    given["digits"] = GivenSource(names(2), splits)
    given["digits"].has_groups = True
    run(tmp_path / "run", num_labeled=6)
    ingest_for_evaluation(DataConfig(num_labeled=6), 0, tmp_path / "evaluation")
    found, expected = read(tmp_path / "evaluation", ("test", "dev")), read(tmp_path / "run")
    assert found["dev"] == expected["dev"] and len(found["dev"]) == 7
