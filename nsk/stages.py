"""The stages: what each one depends on, and which module does its work.

Every method returns a finished `Stage` folder. Its settings and inputs are named in full: they make
its fingerprint, so a changed setting rebuilds exactly the stages that depend on it.
"""

import dataclasses
import functools
import hashlib
import shutil
import zipfile

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from nsk import export, stage, train_stage
from nsk.data import ingest, pipeline, sources
from nsk.data.shards import ShardSet
from nsk.errors import UserError
from nsk.evaluation import suite
from nsk.evaluation.predict import Predictor, collect
from nsk.pseudo import score, select_stage, write
from nsk.pseudo.engine import LOCAL
from nsk.training import strategy as strategies

MODEL = "model.keras"


class Stages:
    """The stages of one run.

    Attributes:
        all_reused: whether every stage so far was there already.

    Args:
        config: `nsk.config.Config`.
        finished_only: nothing is made; a stage that is not there is a UserError.
    """

    def __init__(self, config, finished_only=False):
        self.config = config
        self.finished_only = finished_only
        self.workdir = config.workdir
        self.all_reused = True
        strategies.split_cpu(config.run.logical_devices)
        self.strategy = strategies.make_strategy(config.run.strategy)
        stage.make_folder(self.workdir)

    def save_config(self):
        """Writes every setting of this call into the workdir."""
        stage.write_json_atomically(self.workdir / "config.json", dataclasses.asdict(self.config))

    def _run(self, name, build, settings=None, *, how=None, **inputs):
        """The stage of a name, as `stage.run` makes it; `how` are its other arguments."""
        identity = {"settings": settings or {}, "inputs": inputs}
        if self.finished_only:
            found = stage.find(self.workdir, name, **identity)
            if found is None:
                raise UserError(
                    f"{name} is not finished in {self.workdir} for these settings: give those of "
                    "its run, or make it with the command score."
                )
            return found
        made = stage.run(self.workdir, name, build, **identity, **(how or {}))
        self.all_reused &= made is not None and made.reused
        return made

    def ingest(self):
        """Images into shard sets: labeled, unlabeled, dev, test."""
        data, seed = self.config.data, self.config.split_seed
        images = self._run(
            "data/images",
            lambda folder: ingest.ingest(data, seed, folder),
            {**data.at(0), "split_seed": seed, "content": sources.content(data)},
        )
        if self.config.num_students and not images.counts["images"]["unlabeled"]:
            raise UserError(
                f"No unlabelled images are left of --dataset={data.dataset} for students: lower "
                "--num_labeled or --labeled_fraction, or give --unlabeled_dataset."
            )
        for line in ingest.describe(images.counts):
            logging.info("%s", line)
        self._check_chain(images)
        return images

    def _check_chain(self, images):
        """UserError now for what would stop a later generation after hours of training."""
        teacher = self._checked_teacher(images) if self.config.run.teacher else None
        for generation in range(1 if self.config.run.teacher else 0, self.config.num_students + 1):
            settings = self.training_settings(generation, images)
            sizes = train_stage.stream_batch_sizes(settings["train"], with_pseudo=generation > 0)
            names = ("labeled_batch", "pseudo_batch")[: len(sizes)]
            strategies.check_divisible(self.strategy, **dict(zip(names, sizes, strict=True)))
            self._check_budget(generation, settings["train"], sum(sizes))
            self._check_noise(settings)
            model = train_stage.build_model(
                settings, images.counts["num_classes"], synchronized=False
            )
            if settings.get("init_from") == "teacher" and _shapes(model) != _shapes(teacher):
                raise UserError(
                    f"--init_from=teacher: student {generation} is a {settings['architecture']}, "
                    "which cannot take the weights of its teacher: name the same network twice in "
                    "--models, or give scratch."
                )
            teacher = model

    def _check_budget(self, generation, train, batch_size):
        """UserError where a budget of images is not even one batch."""
        if 0 < train["train_images"] < batch_size:
            raise UserError(
                f"--train_images={train['train_images']} of generation {generation} is less than "
                f"its batch of {batch_size} images: raise it, or lower --labeled_batch_size or "
                "--ratio."
            )

    def _check_noise(self, settings):
        """UserError where the noise on the images is larger than the images."""
        size, noises = settings["image_size"], settings["noise"]
        if noises["crop_mode"] == "reflect" and noises["crop_padding"] >= size:
            raise UserError(
                f"--crop_padding={noises['crop_padding']} of images of {size} pixels: give less "
                "than their side, or --crop_mode=constant."
            )
        if noises["cutout_side"] >= size:
            raise UserError(
                f"--cutout_side={noises['cutout_side']} of images of {size} pixels would leave "
                "nothing to see: give less than their side."
            )

    def adopt_teacher(self, images):
        """An earlier model as generation 0."""
        path = self.config.teacher_path
        model = load_model(path)

        def build(folder):
            shutil.copyfile(path, folder / MODEL)
            return {
                "model": model.name,
                "parameters": train_stage.trainable_parameters(model),
                "class_names": images.counts["class_names"],
            }

        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._run("gen0/teacher", build, {"sha256": digest}, images=images)

    def _checked_teacher(self, images):
        """The adopted teacher; UserError where it does not fit the run's images and classes."""
        path, class_names = self.config.teacher_path, images.counts["class_names"]
        model = load_model(path)
        expected = (self.image_size(images), len(class_names))
        received = (model.input_shape[1], model.output_shape[-1])
        if received != expected:
            raise UserError(
                f"--teacher={path} takes images of {received[0]} pixels and knows {received[1]} "
                f"classes; the run has {expected[0]} pixels and {expected[1]} classes: give a "
                "teacher that fits, or change --image_size or --dataset."
            )
        known = class_names_of(path)
        if known is None:
            logging.warning("--teacher: no class names beside %s, their order is trusted.", path)
        elif known != class_names:
            raise UserError(
                f"--teacher={path} was trained on the classes {', '.join(known)}; the run has "
                f"{', '.join(class_names)}: give a teacher of the same classes in the same order."
            )
        grays = np.linspace(0, 255, 8, dtype=np.float32).reshape(-1, 1, 1, 1)
        outputs = np.asarray(model(np.ones((1, *model.input_shape[1:]), np.float32) * grays))
        if (outputs >= 0).all() and np.allclose(outputs.sum(axis=1), 1.0, atol=1e-3):
            raise UserError(
                f"--teacher={path} returns probabilities; expected logits: leave out its softmax."
            )
        return model

    def train(self, generation, images, pseudo_labels=None, teacher=None):
        """A teacher (generation 0), or a student of a teacher and its pseudo-labels."""
        settings = self.training_settings(generation, images)
        labeled, dev = shard_set(images, "labeled"), shard_set(images, "dev")
        learns_pseudo_labels = generation and settings["train"]["ratio"]
        pseudo = shard_set(pseudo_labels, write.SHARDS) if learns_pseudo_labels else None
        labeled_copies = select_stage.read_labeled_copies(pseudo_labels.path) if generation else {}
        settings = train_stage.resolve_cache(settings, labeled, dev, pseudo)
        warm = settings.get("init_from") == "teacher"

        def build(folder):
            job = train_stage.Job(
                settings=settings,
                labeled=labeled,
                dev=dev,
                pseudo=pseudo,
                labeled_copies=labeled_copies,
                initial=load_model(teacher.path / MODEL) if warm else None,
                summary_folder=self._summary_folder(folder),
                checkpoint_folder=folder / "checkpoints",
                checkpoint_seconds=60 * self.config.run.checkpoint_minutes,
                eval_batch_size=self.config.run.eval_batch_size,
            )
            return train_stage.train(job, self.strategy, folder / MODEL)

        inputs = {"images": images}
        if learns_pseudo_labels or labeled_copies:
            inputs["pseudo_labels"] = pseudo_labels
        if warm:
            inputs["teacher"] = teacher
        how = {"goes_on": True}
        return self._run(settings["name"], build, train_stage.relevant(settings), how=how, **inputs)

    def _summary_folder(self, folder):
        """Where TensorBoard's events of a stage go: a folder that is not renamed at its end."""
        return self.workdir / "tensorboard" / folder.relative_to(self.workdir).with_suffix("")

    def training_settings(self, generation, images):
        """All that a training stage depends on beside its inputs, as JSON-like values."""
        config = self.config
        settings = {
            "name": f"gen{generation}/" + ("student" if generation else "teacher"),
            "seed": config.run.seed,
            "architecture": config.model_name(generation),
            "image_size": self.image_size(images),
            "num_labeled": images.counts["images"]["labeled"],
            "model": config.model.at(generation),
            "noise": {
                **config.noise.at(generation),
                "flip": config.flips,
            },
            "train": config.train.at(generation),
        }
        del settings["model"]["models"], settings["model"]["image_size"]
        init_from = settings["model"].pop("init_from")
        if generation:
            settings["init_from"] = init_from
            pseudo = config.pseudo.at(generation)
            targets = ("pseudo_label", "smooth_epsilon", "temperature")
            settings["targets"] = {name: pseudo[name] for name in targets}
        return settings

    def evaluate(self, model, images):
        """Per-image predictions and metrics on dev and on test."""

        def build(folder):
            predict = self._predictor(model, images)()
            return {
                split: suite.evaluate(
                    collect(predict(shard_set(images, split))), folder / f"{split}.parquet"
                )
                for split in ("dev", "test")
            }

        return self._run(f"{model.path.parent.name}/evaluation", build, model=model, images=images)

    def score(self, generation, teacher, images):
        """The teacher's predictions of the unlabelled images, and of dev.

        None where this process is one of several workers, and not the last one.
        """
        pseudo, run = self.config.pseudo, self.config.run
        workers = {"worker": run.shard_index, "num_workers": run.num_shard_workers}
        settings = {
            "views": pseudo.score_views,
            "top_k": pseudo.stored_classes(images.counts["num_classes"]),
        }
        if pseudo.first_scores == "records" and generation == 1:
            return self._run(
                "gen1/scores",
                lambda folder: score.adopt(
                    shard_set(images, "unlabeled"), folder, top_k=settings["top_k"]
                ),
                {"top_k": settings["top_k"], "from": "records"},
                images=images,
            )

        def build(folder):
            return score.score(
                shard_set(images, "unlabeled"),
                shard_set(images, "dev"),
                self._predictor(teacher, images, settings["views"]),
                folder,
                top_k=settings["top_k"],
                title=f"gen{generation}/scores",
                engine=self._engine(folder),
                **workers,
            )

        return self._run(
            f"gen{generation}/scores",
            build,
            settings,
            how={"goes_on": True, **workers},
            teacher=teacher,
            images=images,
        )

    def select(self, generation, scores, images):
        """Which unlabelled images are kept, and how often each one is shown."""
        pseudo = self.config.pseudo.at(generation)
        names = ("min_confidence", "calibrate", "target_precision", "policy")
        settings = {"seed": self.config.run.seed, **{name: pseudo[name] for name in names}}
        if pseudo["policy"] == "paper":
            settings["images_per_class"] = pseudo["images_per_class"]
        elif pseudo["policy"] == "gap":
            settings |= {"floor": pseudo["gap_floor"], "margin": pseudo["gap_margin"]}
        return self._run(
            f"gen{generation}/selection",
            lambda folder: select_stage.select_images(
                settings,
                score.score_paths(shard_set(images, "unlabeled"), scores.path),
                scores.path / score.DEV,
                shard_set(images, "labeled"),
                folder,
                self._engine(folder),
            ),
            settings,
            scores=scores,
            images=images,
        )

    def write(self, generation, images, scores, selection):
        """The selected images with their pseudo-labels as shards."""
        settings = {"shard_mebibytes": self.config.data.shard_mebibytes}
        return self._run(
            f"gen{generation}/pseudo",
            lambda folder: write.write(
                shard_set(images, "unlabeled"),
                scores.path,
                selection.path,
                folder,
                shard_bytes=settings["shard_mebibytes"] * 2**20,
                title=f"gen{generation}/pseudo",
                engine=self._engine(folder),
            ),
            settings,
            how={"goes_on": True},
            images=images,
            scores=scores,
            selection=selection,
        )

    def export(self, model, images):
        """The model to keep: `.keras` and SavedModel."""
        return self._run(
            "export",
            lambda folder: export.export(
                load_model(model.path / MODEL), images.counts["class_names"], folder
            ),
            model=model,
        )

    def image_size(self, images):
        """Side of the images that the networks take, pixels."""
        size = self.config.model.image_size or images.counts["image_side"]
        if size is None:
            smallest, largest = images.counts["image_sizes"].values()
            raise UserError(
                f"The images' shorter sides are {smallest} to {largest} pixels: give --image_size."
            )
        return size

    def _engine(self, folder):
        """Where the work on pseudo-labels is done; a stage's folder is for what it needs there."""
        if self.config.pseudo.engine == "local":
            return LOCAL
        from nsk.pseudo import beam  # Heavy, and not installed where it is not used.

        return beam.Engine(self.config.pseudo.beam_options, folder)

    def _predictor(self, model, images, views="image"):
        """Function without arguments that loads a model and returns what predicts shards; see
        `load_predictor`."""
        run = self.config.run
        # A strategy belongs to this process; on others Beam is what there are several of.
        strategy = self.strategy if self.config.pseudo.engine == "local" else None
        return functools.partial(
            load_predictor,
            model.path / MODEL,
            self.image_size(images),
            run.eval_batch_size,
            strategy,
            views,
        )


def load_predictor(path, image_size, batch_size, strategy, views):
    """Loads a model.

    Returns:
        Function of a `ShardSet` and some of its shards' indices (None: all of them) that yields
        the model's `Predictions` of their images, batch by batch.
    """
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        loaded = load_model(path)
    predict = Predictor(loaded, batch_size, strategy, views)

    def predictions(shard_set, shards=None):
        batches = pipeline.clean_batches(shard_set, image_size, batch_size, shards)
        with shard_set.naming_broken_shards():
            yield from predict(batches)

    return predictions


def shard_set(made, split):
    """A shard set inside a finished stage."""
    return ShardSet.load(made.path / split)


def _shapes(model):
    """Shapes of all of a model's weights, in order."""
    return [tuple(variable.shape) for variable in model.variables]


def class_names_of(path):
    """Class names of a model that nsk trained or exported, from beside it; None where unknown."""
    listed = path.with_name("class_names.txt")
    if listed.is_file():
        return listed.read_text(encoding="utf-8").splitlines()
    if path.with_name(stage.MANIFEST).is_file():
        return stage.load(path.parent).counts.get("class_names")
    return None


def load_model(path):
    """A `.keras` model, safely: nothing in the file is executed.

    Raises:
        UserError: it is missing, damaged or no `.keras` file.
    """
    if path.suffix != ".keras" or not path.is_file():
        raise UserError(
            f"{path} is not a .keras file: give the path of a model saved by nsk or Keras."
        )
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"The model {path} cannot be loaded ({reason}): give another one."
        ) from None
