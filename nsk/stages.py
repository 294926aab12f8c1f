"""The stages: what each one depends on, and which module does its work.

Every method returns a finished `Stage` folder. Its settings and inputs are named in full: they make
its fingerprint, so a changed setting rebuilds exactly the stages that depend on it.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil

from absl import logging

from nsk import checks, export, model_files, stage, together, train_stage
from nsk.data import ingest, sources
from nsk.data.shards import ShardSet
from nsk.errors import UserError
from nsk.evaluation import suite
from nsk.evaluation.predict import collect
from nsk.models import weights
from nsk.pseudo import score, select_stage, write
from nsk.pseudo.engine import LOCAL
from nsk.training import cluster
from nsk.training import strategy as strategies
from nsk.training.workers import Workers

MODEL = "model.keras"
CHECKPOINTS = ".checkpoints"


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
        stage.make_folder(self.workdir)
        if config.run.strategy == "multi_worker":
            self._meet()
        strategies.split_cpu(config.run.logical_devices)
        self.strategy = strategies.make_strategy(config.run.strategy, config.run.tpu)
        self.local_strategy = strategies.local_strategy(self.strategy)
        self.workers = Workers(self.strategy)
        if self.workers.count > 1:
            self.workers.wait()
            together.part(self.workdir, self.workers.index, self.workers.count)

    def _meet(self):
        """Waits until all workers have begun, with the same flags."""
        flags = dataclasses.asdict(self.config)
        del flags["run"]["workdir"]  # Its place may have another name on another machine.
        joined = cluster.read_tf_config(os.environ.get("TF_CONFIG", ""))
        cluster.check_port(joined)
        content = json.dumps(flags, sort_keys=True)
        together.meet(self.workdir, joined.index, joined.count, content)
        cluster.check_hosts(joined)  # Not before: a host may get its name when it begins.

    def save_config(self):
        """Writes every setting of this call into the workdir."""
        if self.workers.is_chief:
            content = dataclasses.asdict(self.config)
            stage.write_json_atomically(self.workdir / "config.json", content)

    def _run(self, name, build, settings=None, *, shared=False, how=None, **inputs):
        """The stage of a name, as `stage.run` makes it; `how` are its other arguments.

        Of several workers the chief makes it. With `shared` the others call `build`, too, with
        the folder that the chief fills.
        """
        identity = {"settings": settings or {}, "inputs": inputs}
        if self.finished_only:
            found = stage.find(self.workdir, name, **identity)
            if found is None:
                raise UserError(
                    f"{name} is not finished in {self.workdir} for these settings"
                    f"{stage.nearest(self.workdir, name, **identity)}: give those of its run, or "
                    "make it with the command run or score."
                )
            return found
        run = functools.partial(stage.run, self.workdir, name, **identity, **(how or {}))
        if self.workers.count == 1:
            made = run(build)
        else:
            path = stage.folder_of(self.workdir, name, **identity)
            made = together.led(self.workers, path, run, build, build if shared else None)
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
            if data.unlabeled_dataset:
                raise UserError(
                    f"--unlabeled_dataset={data.unlabeled_dataset} has no image for students to "
                    "learn from: give another one."
                )
            raise UserError(
                f"No unlabelled images are left of --dataset={data.dataset} for students: lower "
                "--num_labeled or --labeled_fraction, or give --unlabeled_dataset."
            )
        for line in ingest.describe(images.counts):
            logging.info("%s", line)
        checks.check_chain(self, images)
        return images

    def state_images(self):
        """The numbers of `--plan_images` in the place of images; `ingest.StatedImages`."""
        images = ingest.state_images(*self.config.run.stated_images)
        checks.check_chain(self, images)
        return images

    def adopt_teacher(self, images):
        """An earlier model as generation 0."""
        path = self.config.teacher_path
        model = model_files.load_model(path)

        def build(folder):
            shutil.copyfile(path, folder / MODEL)
            return {
                "model": model.name,
                "parameters": train_stage.trainable_parameters(model),
                "image_size": model.input_shape[1],
                "class_names": images.counts["class_names"],
            }

        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._run("gen0/teacher", build, {"sha256": digest}, images=images)

    def train(self, generation, images, pseudo_labels=None, teacher=None):
        """A teacher (generation 0), or a student of a teacher and its pseudo-labels."""
        settings = self.training_settings(generation, images)
        learns_pseudo_labels = generation and settings["train"]["ratio"]
        pseudo = shard_set(pseudo_labels, write.SHARDS) if learns_pseudo_labels else None
        labeled_copies = select_stage.read_labeled_copies(pseudo_labels.path) if generation else {}
        inputs = {"images": images}
        if learns_pseudo_labels or labeled_copies:
            inputs["pseudo_labels"] = pseudo_labels
        begins, initial = self.config.init_from(generation), None
        if begins == "teacher":
            initial = teacher.path / MODEL
            inputs["teacher"] = teacher
        elif begins != "scratch":
            initial = begins
            settings["init_from"] = {"sha256": weights.sha256(begins)}
        return self._train(settings, inputs, initial, pseudo, labeled_copies)

    def finetune(self, generation, images, trained):
        """A trained model, fine-tuned at the resolution of the test; itself where that is off."""
        settings = self.finetune_settings(generation, images)
        if settings is None:
            return trained
        return self._train(settings, {"images": images, "trained": trained}, trained.path / MODEL)

    def _train(self, settings, inputs, initial, pseudo=None, labeled_copies=None):
        """A stage of training.

        Args:
            settings: see `training_settings`.
            inputs: dict from role to the `Stage`s that it is made from, `images` among them.
            initial: path of the weights that it starts from; None: fresh ones.
            pseudo, labeled_copies: see `train_stage.Job`.
        """
        labeled, dev = (shard_set(inputs["images"], split) for split in ("labeled", "dev"))
        settings = train_stage.resolve_cache(settings, labeled, dev, pseudo)

        def build(folder):
            job = train_stage.Job(
                settings=settings,
                labeled=labeled,
                dev=dev,
                pseudo=pseudo,
                labeled_copies=labeled_copies or {},
                initial=weights.read(initial) if initial else None,
                summary_folder=self._summary_folder(folder),
                checkpoint_folder=folder.with_suffix(CHECKPOINTS),
                checkpoint_seconds=60 * self.config.run.checkpoint_minutes,
                eval_batch_size=self.config.run.eval_batch_size,
                jit_compile=self.config.run.jit_compile,
            )
            return train_stage.train(job, self.strategy, folder / MODEL)

        made = self._run(
            settings["name"],
            build,
            train_stage.relevant(settings),
            shared=True,
            how={"goes_on": True},
            **inputs,
        )
        if self.workers.is_chief:  # Only now is what they hold on disk in its final place.
            shutil.rmtree(made.path.with_name(made.path.name + CHECKPOINTS), ignore_errors=True)
        return made

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
            "image_size": self.image_size(generation, images),
            "num_labeled": images.counts["images"]["labeled"],
            "model": config.model.at(generation),
            "noise": {
                **config.noise.at(generation),
                "flip": config.flips,
            },
            "train": config.train.at(generation),
        }
        del settings["model"]["models"], settings["model"]["image_size"]
        settings["init_from"] = settings["model"].pop("init_from")
        if generation:
            pseudo = config.pseudo.at(generation)
            targets = ("pseudo_label", "smooth_epsilon", "temperature")
            settings["targets"] = {name: pseudo[name] for name in targets}
        return settings

    def finetune_settings(self, generation, images):
        """`training_settings` of a generation's fine-tuning; None where it has none."""
        finetune = self.config.finetune.at(generation)
        if not finetune["finetune_resolution"]:
            return None
        trained = self.training_settings(generation, images)
        return {
            **{name: trained[name] for name in ("seed", "architecture", "num_labeled", "model")},
            "name": f"gen{generation}/finetune",
            "image_size": finetune["finetune_resolution"],
            "frozen_blocks": finetune["finetune_frozen_blocks"],
            "noise": {**trained["noise"], **train_stage.NO_NOISE},
            "train": {
                **trained["train"],
                "train_images": 0,
                "train_steps": 0,
                "train_epochs": finetune["finetune_epochs"],
                "learning_rate": finetune["finetune_learning_rate"],
                "schedule": "cosine",
                "warmup_epochs": 0.0,
                "mixing": "ratio",
            },
        }

    def evaluate(self, model, images):
        """Per-image predictions and metrics on dev and on test."""

        def build(folder):
            predict = self._predictor(model, self.local_strategy)()
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
        # A strategy belongs to this process; on others Beam is what there are several of.
        strategy = self.local_strategy if pseudo.engine == "local" else None
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

        def build_share(folder, worker, num_workers):
            return score.score(
                shard_set(images, "unlabeled"),
                shard_set(images, "dev"),
                self._predictor(teacher, strategy, settings["views"]),
                folder,
                top_k=settings["top_k"],
                title=f"gen{generation}/scores",
                engine=self._engine(folder),
                worker=worker,
                num_workers=num_workers,
            )

        shared = pseudo.engine == "local" and self.workers.count > 1

        def build(folder):
            """Every worker scores a share, and when all have, the chief sees to what is missing."""
            if shared:
                with self.workers.failing_together():
                    build_share(folder, self.workers.index, self.workers.count)
            if self.workers.is_chief:
                return build_share(folder, **workers)

        return self._run(
            f"gen{generation}/scores",
            build,
            settings,
            shared=shared,
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
                model_files.load_model(model.path / MODEL), images.counts["class_names"], folder
            ),
            model=model,
        )

    def image_size(self, generation, images):
        """Side of the images that a generation's network is trained on, pixels."""
        size = self.config.model.at(generation)["image_size"] or images.counts["image_side"]
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

    def _predictor(self, model, strategy, views="image"):
        """Function without arguments that loads a model and returns what predicts shards; see
        `model_files.load_predictor`."""
        return functools.partial(
            model_files.load_predictor,
            model.path / MODEL,
            self.config.run.eval_batch_size,
            strategy,
            views,
            self.config.run.jit_compile,
        )


def shard_set(made, split):
    """A shard set inside a finished stage."""
    return ShardSet.load(made.path / split)
