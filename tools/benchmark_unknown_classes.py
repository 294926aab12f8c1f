"""Are pools that are unlike the labels told from others before a student is trained on them?

    python -m tools.benchmark_unknown_classes [--pools=like,noise,one_class,unknown,many]
        [--seeds=0] [--source=digits|cifar10] [--students] [--train_images=N] [--workdir=FOLDER]

Pools of unlabelled images:

- like: of the same classes as the labelled images; a warning is a false alarm.
- noise: uniform random pixels.
- one_class: a single one of the classes.
- unknown: also all images of three classes that the labels lack.
- many: as like, with 100 unlabelled images for each labelled one.

For each pool and seed: what the comparison with dev found, and what it warned of. How well an
unknown class is told from known ones by the distance in features is measured by the area under the
ROC curve (AUROC), beside the confidence, the energy (Liu et al., 2020) and the margin between the
two largest logits. --students also trains a student with --unknown_classes=warn and with filter,
and reports their test accuracies. CIFAR-10 is read from TFDS_DATA_DIR. The last line is a JSON
object.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

UNKNOWN = "unknown"  # Ids of images of classes that the labels lack start with this.
NUM_UNKNOWN_CLASSES = 3
POOLS = ("like", "noise", "one_class", "unknown", "many")


@dataclasses.dataclass(frozen=True)
class Source:
    """Images, and how networks are trained on them.

    Attributes:
        images: uint8 array (n, side, side) or (n, side, side, 3).
        labels: int array (n,), of ten classes.
        labeled, dev, test, pool: numbers of images of each class; pool: at most.
        settings: of a run.
        teacher_images, student_images: budgets of the trainings.
    """

    images: np.ndarray
    labels: np.ndarray
    labeled: int
    dev: int
    test: int
    pool: int
    settings: dict
    teacher_images: int
    student_images: int


def load_digits():
    """The digits of scikit-learn with the settings of the quickstart."""
    from sklearn import datasets

    digits = datasets.load_digits()
    settings = {
        "models": ["convnet5", "resnet9"],
        "image_size": ["16"],
        "labeled_batch_size": ["32", "8"],
        "ratio": ["7"],
        "loss_normalization": "all",
        "learning_rate": ["0.05"],
        "weight_decay": ["5e-3"],
        "label_smoothing": 0.1,
        "ema_decay": 0.99,
        "flip": "off",
        "crop_padding": ["0"],
        "randaugment_operations": "rotate,shear_x,shear_y,translate_x,translate_y",
        "randaugment_num_ops": ["2"],
        "randaugment_magnitude": ["9", "24"],
        "fill": 0,
        "dropout_rate": ["0.2", "0.4"],
        "mixup_alpha": ["0.2", "0"],
        "min_confidence": ["0.4"],
        "pseudo_label": "soft",
        "temperature": 0.4,
    }
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return Source(pixels, digits.target, 5, 20, 35, 200, settings, 20_000, 60_000)


def load_cifar10():
    """CIFAR-10 with the settings of flags/cifar10_small.flags, and small budgets."""
    import tensorflow_datasets as tfds

    data = tfds.as_numpy(tfds.load("cifar10", split="train", batch_size=-1))
    settings = {
        "models": ["resnet9", "resnet9"],
        "init_from": ["scratch", "teacher"],
        "labeled_batch_size": ["128", "16"],
        "ratio": ["7"],
        "loss_normalization": "all",
        "learning_rate": ["0.1"],
        "nesterov": True,
        "weight_decay": ["5e-4"],
        "dropout_rate": ["0"],
        "randaugment_num_ops": ["2"],
        "randaugment_magnitude": ["9"],
        "crop_padding": ["4"],
        "min_confidence": ["0.5"],
        "pseudo_label": "soft",
    }
    images, labels = data["image"], data["label"].astype(int)
    return Source(images, labels, 500, 200, 500, 1000, settings, 100_000, 100_000)


LOADERS = {"digits": load_digits, "cifar10": load_cifar10}


def write_pool(source: Source, pool: str, seed: int, folder: Path) -> dict:
    """Writes the images of a run with a pool; returns the settings of its data."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(source.images))
    classes = random.permutation(10)
    unknown = classes[:NUM_UNKNOWN_CLASSES] if pool == "unknown" else []
    unlabeled = []
    labeled = source.labeled
    if pool == "many":
        labeled = 1 if len(source.images) < 10_000 else 10
    for label in range(10):
        rows = order[source.labels[order] == label]
        if label in unknown:
            unlabeled += [(UNKNOWN, row) for row in rows[: source.pool]]
            continue
        parts = np.split(rows, np.cumsum([source.test, labeled + source.dev]))
        for split, part in zip(("test", "train"), parts[:2], strict=True):
            for row in part:
                save(source.images[row], folder / "labels" / split / str(label) / f"{row}.png")
        if pool in ("like", "unknown", "many") or label == classes[0]:
            unlabeled += [("known", row) for row in parts[2][: source.pool]]
    if pool == "noise":
        shape = source.images.shape[1:]
        noise = random.integers(0, 256, (min(10_000, 6 * source.pool), *shape), np.uint8)
        unlabeled = []
        for number, image in enumerate(noise):
            save(image, folder / "unlabeled" / f"{UNKNOWN}_{number}.png")
    for kind, row in unlabeled:
        save(source.images[row], folder / "unlabeled" / f"{kind}_{row}.png")
    known = 10 - len(unknown)
    return {
        "dataset": f"folder:{folder}/labels",
        "unlabeled_dataset": f"folder:{folder}/unlabeled",
        "num_labeled": labeled * known,
        "num_dev": source.dev * known,
    }


def save(pixels, path):
    """Writes a PNG file."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def run_pool(source, pool, seed, workdir, with_students):
    """Trains a teacher, compares its pool with dev, and perhaps trains students; returns a dict."""
    from nsk import self_training
    from nsk.stages import comparison, scoring

    values = {
        **source.settings,
        **write_pool(source, pool, seed, workdir / "images"),
        "workdir": str(workdir / "run"),
        "optimizer": "sgd",
        "schedule": "cosine",
        "train_images": [str(source.teacher_images), str(source.student_images)],
        "strategy": "one",
        "seed": seed,
    }
    (workdir / "run").mkdir(parents=True, exist_ok=True)
    runner = make_runner(values)
    images, chain = self_training.start_chain(runner)
    scores = scoring.score(runner, 1, chain[0].model, images)
    compared = comparison.compare(runner, 1, scores, images).counts
    result = {
        "pool": pool,
        "seed": seed,
        "teacher_test": chain[0].evaluation.counts["test"]["accuracy"],
        "unlike": compared["unlike"],
        "above": compared["confidence"]["above_threshold"],
        "dev_precision": compared["confidence"]["dev_precision"],
        "shift": compared["classes"]["shift"],
        "p_values": {
            name: compared[name]["p_value"] for name in ("confidence", "classes", "distance")
        },
        "distance": compared["distance"],
        "unknown_share": compared["unknown_share"],
        **measure_unknown(images, chain[0].model, scores, compared["distance"]["limit"]),
    }
    for choice in ("warn", "filter") if with_students else ():
        result[choice] = train_student({**values, "unknown_classes": choice})
    return result


def make_runner(values):
    """A `StageRunner` of settings."""
    from nsk.config.config import Config
    from nsk.distributed.runtime import Runtime
    from nsk.distributed.strategy import make_strategy
    from nsk.stages.runner import StageRunner

    return StageRunner(Config.from_values(values), Runtime.from_strategy(make_strategy("one")))


def train_student(values):
    """Test accuracy of a student and the numbers of its pseudo-labels; or why there is none."""
    from nsk import decisions, self_training
    from nsk.errors import GenerationFailedError

    runner = make_runner(values)
    try:
        _, chain = self_training.train_generations(runner, 2)
    except GenerationFailedError as error:
        return {"error": str(error)}
    decisions.warn_of_worse_student(chain)
    return {
        "test": chain[1].evaluation.counts["test"]["accuracy"],
        "dev": chain[1].evaluation.counts["dev"]["accuracy"],
        "dev_teacher": chain[0].evaluation.counts["dev"]["accuracy"],
        **count_unknown_kept(chain[1]),
    }


def count_unknown_kept(generation):
    """How many images are kept, and how many of them are of unknown classes."""
    from nsk.evaluation.prediction_files import read_table
    from nsk.pseudo.score_rows import read_copies

    kept = unknown = 0
    for path in sorted((generation.scores.path / "unlabeled").glob("*.parquet")):
        is_kept = read_copies(generation.selection.path / path.name) > 0
        ids = read_table(path, ["id"])["id"].to_pylist()
        kept += int(is_kept.sum())
        unknown += sum(is_kept[row] and is_unknown(image_id) for row, image_id in enumerate(ids))
    return {"kept": kept, "kept_unknown": int(unknown)}


def is_unknown(image_id):
    """Whether an image of the pool is of an unknown class."""
    return image_id.rsplit("/", 1)[-1].startswith(UNKNOWN)


def measure_unknown(images, teacher, scores, limit):
    """The share of unknown classes, and how well scores tell them from known ones.

    If all images of the pool are unknown, the known ones are those of dev.
    """
    unlabeled = read_measures(images, teacher, scores, "unlabeled")
    truth = np.array([is_unknown(image_id) for image_id in unlabeled.pop("id")])
    found = {"true_unknown_share": float(truth.mean())}
    if not truth.any():
        return found
    known = {name: values[~truth] for name, values in unlabeled.items()}
    if truth.all():
        known = read_measures(images, teacher, scores, "dev")
    unknown = {name: values[truth] for name, values in unlabeled.items()}
    return found | {
        "auroc": {name: auroc(known[name], values) for name, values in unknown.items()},
        "unknown_left_out": float(np.mean(unknown["distance"] > limit)),
        "known_left_out": float(np.mean(known["distance"] > limit)),
    }


def read_measures(images, teacher, scores, split):
    """Ids and what may tell unknown classes, the larger the more likely, of a split's images."""
    from nsk.evaluation.prediction_files import read_predictions

    folder = scores.path / split
    paths = sorted(folder.glob("*.parquet")) or [folder.with_suffix(".parquet")]
    parts = [read_predictions(path) for path in paths]
    logits = predict_logits(images, teacher, split)
    two_largest = np.sort(logits, axis=1)[:, -2:]
    return {
        "id": [image_id for part in parts for image_id in part.ids],
        "distance": np.concatenate([part.feature_distances for part in parts]),
        "confidence": -np.concatenate([part.confidences for part in parts]),
        "energy": -np.logaddexp.reduce(logits, axis=1),
        "margin": -(two_largest[:, 1] - two_largest[:, 0]),
    }


def predict_logits(images, teacher, split):
    """The teacher's logits of a split's images: float32 (n, num_classes)."""
    from nsk.data import pipeline
    from nsk.models.model_files import load_model
    from nsk.stages.runner import MODEL_FILE, shard_set

    model = load_model(teacher.path / MODEL_FILE)
    batches = pipeline.clean_batches(shard_set(images, split), model.input_shape[1], 500)
    return np.concatenate([model.predict_on_batch(batch["image"].numpy()) for batch in batches])


def auroc(negatives, positives):
    """Probability that a positive value exceeds a negative one."""
    from scipy.stats import mannwhitneyu

    statistic = mannwhitneyu(positives, negatives).statistic
    return float(statistic / (len(positives) * len(negatives)))


def format_result(result):
    """A line of the table."""
    above, distance = result["above"], result["distance"]["quantiles"]
    line = (
        f"{result['pool']:10s} seed {result['seed']}: "
        f"{'WARNED of ' + ', '.join(result['unlike']) if result['unlike'] else 'no warning'}; "
        f"above {above['pool']:.3f} (dev {above['dev']:.3f}, right {result['dev_precision']:.3f}), "
        f"shift {result['shift']:.2f}, distance {distance['pool'][2]:.3f} "
        f"(dev {distance['dev'][2]:.3f}), unknown {result['unknown_share']:.2f} "
        f"(truth {result['true_unknown_share']:.2f}); test: teacher {result['teacher_test']:.4f}"
    )
    for choice in ("warn", "filter"):
        student = result.get(choice)
        if student:
            line += f", {choice} " + (
                f"{student['test']:.4f} ({student['kept_unknown']} of {student['kept']} unknown)"
                if "test" in student
                else student["error"]
            )
    if "auroc" in result:
        line += "; AUROC " + ", ".join(f"{k} {v:.3f}" for k, v in result["auroc"].items())
        line += (
            f"; left out: {result['unknown_left_out']:.3f} of unknown, "
            f"{result['known_left_out']:.3f} of known"
        )
    return line


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the pools and prints a line for each, and a line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", choices=sorted(LOADERS), default="digits", help="images")
    parser.add_argument("--pools", default=",".join(POOLS), help="comma list of pools")
    parser.add_argument("--seeds", default="0", help="comma list of seeds")
    parser.add_argument("--students", action="store_true", help="train students, too")
    parser.add_argument("--train_images", type=int, help="budget of a teacher")
    parser.add_argument("--workdir", help="folder to keep the runs in")
    options = parser.parse_args(arguments)
    unknown = set(options.pools.split(",")) - set(POOLS)
    if unknown:
        parser.error(f"--pools: {', '.join(sorted(unknown))}: expected some of {','.join(POOLS)}")
    source = LOADERS[options.source]()
    if options.train_images:
        source = dataclasses.replace(source, teacher_images=options.train_images)
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.workdir or temporary)
        for seed in map(int, options.seeds.split(",")):
            for pool in options.pools.split(","):
                workdir = folder / f"{pool}{seed}"
                results.append(run_pool(source, pool, seed, workdir, options.students))
                print(format_result(results[-1]), flush=True)
    print(json.dumps({"source": options.source, "results": results}))


if __name__ == "__main__":
    main()
