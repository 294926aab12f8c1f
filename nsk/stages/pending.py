"""Stage functions that move into their modules."""

import functools

from nsk.config.fields import used_values
from nsk.evaluation.predictor import collect
from nsk.models import files as model_files
from nsk.models.files import load_model
from nsk.pseudo.engine import LOCAL
from nsk.stages import evaluation as evaluation_work
from nsk.stages import export as export_work
from nsk.stages import pseudo_shards, scoring, selection
from nsk.stages.runner import StageRunner, shard_set
from nsk.stages.training import MODEL
from nsk.store.folders import StageFolder


def evaluate(runner: StageRunner, model: StageFolder, images: StageFolder) -> StageFolder:
    """The stage that evaluates a model: per-image predictions and metrics on dev and on test."""

    def build(folder):
        predict = make_predictor(runner, model, runner.runtime.local_strategy)()
        return {
            split: evaluation_work.evaluate(
                collect(predict(shard_set(images, split))), folder / f"{split}.parquet"
            )
            for split in ("dev", "test")
        }

    name = f"{model.path.parent.name}/evaluation"
    return runner.build_or_reuse(name, build, model=model, images=images)


def make_predictor(runner, model, strategy, views="image"):
    return functools.partial(
        model_files.load_predictor,
        model.path / MODEL,
        runner.config.run.eval_batch_size,
        strategy,
        views,
    )


def make_engine(runner, folder):
    """The engine of work on pseudo-labels; Beam keeps what its workers need in `folder`."""
    if runner.config.run.engine == "local":
        return LOCAL
    from nsk.pseudo import beam_engine  # Heavy, and optional.

    return beam_engine.Engine(runner.config.run.beam_options, folder)


def score(runner: StageRunner, generation: int, teacher: StageFolder, images: StageFolder):
    """The stage that scores the unlabelled images, and dev, by a teacher.

    Returns:
        The stage; None if this process is one of several that share the shards, and others have
        not finished theirs.
    """
    config, name = runner.config, f"gen{generation}/scores"
    unlabeled, dev = (shard_set(images, split) for split in ("unlabeled", "dev"))
    top_k = config.scoring.num_stored_classes(images.counts["num_classes"])
    if config.scoring.first_scores == "records" and generation == 1:
        return runner.build_or_reuse(
            name,
            lambda folder: scoring.adopt(unlabeled, folder, top_k=top_k),
            {"top_k": top_k, "from": "records"},
            images=images,
        )
    # A strategy cannot leave this process; Beam brings its own parallelism.
    strategy = runner.runtime.local_strategy if config.run.engine == "local" else None
    predictor = make_predictor(runner, teacher, strategy, config.scoring.score_views)
    shard_workers = {
        "worker": config.command.shard_index,
        "num_workers": config.command.num_shard_workers,
    }

    def build(folder, **share):
        engine = make_engine(runner, folder)
        options = {"top_k": top_k, "title": name, "engine": engine, **(share or shard_workers)}
        return scoring.score(unlabeled, dev, predictor, folder, **options)

    workers = runner.workers

    def build_share(folder):
        """Every worker scores a share; then the chief scores what is missing."""
        with workers.propagate_errors():
            build(folder, worker=workers.index, num_workers=workers.count)
        if workers.is_chief:
            return build(folder)

    shares = config.run.engine == "local" and workers.count > 1
    return runner.build_or_reuse(
        name,
        build_share if shares else build,
        {"views": config.scoring.score_views, "top_k": top_k},
        join=build_share if shares else None,
        resumes=True,
        **shard_workers,
        teacher=teacher,
        images=images,
    )


def select(
    runner: StageRunner, generation: int, scores: StageFolder, images: StageFolder
) -> StageFolder:
    """The stage that decides which unlabelled images are kept, and how often each is shown."""
    section = runner.config.selection.at(generation)
    settings = {"seed": runner.config.run.seed, **used_values([section])}
    unlabeled, labeled = (shard_set(images, split) for split in ("unlabeled", "labeled"))
    renamed = {name.removeprefix("gap_"): value for name, value in settings.items()}
    return runner.build_or_reuse(
        f"gen{generation}/selection",
        lambda folder: selection.select_images(
            renamed,
            scoring.score_paths(unlabeled, scores.path),
            scores.path / scoring.DEV,
            labeled,
            folder,
            make_engine(runner, folder),
        ),
        settings,
        scores=scores,
        images=images,
    )


def write(
    runner: StageRunner,
    generation: int,
    images: StageFolder,
    scores: StageFolder,
    selected: StageFolder,
) -> StageFolder:
    """The stage that writes the selected images with their pseudo-labels as shards."""
    name, shard_mebibytes = f"gen{generation}/pseudo", runner.config.data.shard_mebibytes
    return runner.build_or_reuse(
        name,
        lambda folder: pseudo_shards.write(
            shard_set(images, "unlabeled"),
            scores.path,
            selected.path,
            folder,
            shard_bytes=shard_mebibytes * 2**20,
            title=name,
            engine=make_engine(runner, folder),
        ),
        {"shard_mebibytes": shard_mebibytes},
        resumes=True,
        images=images,
        scores=scores,
        selection=selected,
    )


def export(runner: StageRunner, model: StageFolder, images: StageFolder) -> StageFolder:
    """The stage that exports the model to keep: `.keras` and SavedModel."""
    return runner.build_or_reuse(
        "export",
        lambda folder: export_work.export(
            load_model(model.path / MODEL), images.counts["class_names"], folder
        ),
        model=model,
    )
