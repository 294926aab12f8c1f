"""What would stop a later generation after hours of training, told before the first one."""

import numpy as np
from absl import logging

from nsk import models
from nsk.distributed import strategy as strategies
from nsk.errors import UserError
from nsk.models import blocks, weights
from nsk.models import files as model_files
from nsk.stages import training as train_stage

# Side of the largest images that networks for small ones are usual for, pixels.
SMALL_SIDE = 64


def check_chain(stages, images):
    """Checks every generation of a chain.

    Args:
        stages: the `Stages` of the run.
        images: the ingest `Stage`.

    Raises:
        UserError: settings do not fit the images, the devices or each other.
    """
    config = stages.config
    _check_first_scores(config, images)
    teacher = _checked_teacher(stages, images) if config.run.teacher else None
    surprises = {}  # In order, each once.
    built = {}  # The last network alone: the largest ones take seconds, and gigabytes.
    for generation in range(1 if config.run.teacher else 0, config.num_students + 1):
        settings = stages.training_settings(generation, images)
        sizes = train_stage.stream_batch_sizes(settings["train"], with_pseudo=generation > 0)
        names = ("labeled_batch", "pseudo_batch")[: len(sizes)]
        strategies.check_divisible(
            stages.strategy,
            settings["train"]["accumulation_steps"],
            **dict(zip(names, sizes, strict=True)),
        )
        _check_budget(generation, settings["train"], sum(sizes))
        _check_noise(settings)
        kind = (settings["architecture"], settings["image_size"], *settings["model"].items())
        if kind not in built:
            num_classes = images.counts["num_classes"]
            built = {kind: train_stage.build_model(settings, num_classes, synchronized=False)}
        model = built[kind]
        surprises.update(dict.fromkeys(_surprises(settings, model)))
        _check_initial(config, generation, model, teacher)
        _check_finetuning(stages, stages.finetune_settings(generation, images), model)
        teacher = model
    for line in surprises:
        logging.warning("%s", line)


def _surprises(settings, model):
    """Lines that tell where a network is not what its settings lead to expect."""
    name, side = settings["architecture"], settings["image_size"]
    if models.is_for_small_images(name) and side > SMALL_SIDE:
        yield (
            f"{name} is a network for small images: at {side} pixels it takes much time and "
            "memory; imagenet_resnet18, efficientnet_b0 and kerascv:resnet50, say, are for large "
            "ones."
        )
    if settings["train"]["rematerialize"] and not blocks.block_names(model):
        yield f"--rematerialize leaves {name} as it is, whose blocks are not known."


def _check_initial(config, generation, model, teacher):
    """UserError where a network cannot take the weights that it is to begin with.

    Args:
        model: the network; it takes those of a file.
        teacher: a network like its teacher; None for a chain's first network.
    """
    begins = config.init_from(generation)
    if begins == "teacher" and generation == 1 and config.run.teacher:
        begins = config.teacher_path
    if begins == "scratch":
        return
    if begins == "teacher":
        if _shapes(model) != _shapes(teacher):
            raise UserError(
                f"--init_from=teacher: student {generation} is a {model.name}, which cannot take "
                "the weights of its teacher: name the same network twice in --models, or give "
                "scratch."
            )
        return
    given = weights.read(begins)
    fresh_head = weights.assign(model, given)
    taken = [one for name, one in given.layers.items() if not (fresh_head and name == weights.HEAD)]
    told = [f"{sum(map(len, taken))} tensors"]
    if given.averaged:
        told.append(f"{given.averaged} of them moving averages")
    if given.ignored:
        told.append(f"{given.ignored} others ignored")
    if fresh_head:
        told.append(f"fresh classifier for {model.output_shape[-1]} classes")
    logging.info("Generation %d begins with %s: %s.", generation, begins, ", ".join(told))
    foreign = weights.foreign_pixels(model, given)
    if foreign:
        logging.warning("%s expects pixels of %s: training has to make up for it.", begins, foreign)


def _check_first_scores(config, images):
    """UserError where records are to give the first scores, and do not."""
    taught, unlabeled = images.counts["external_teacher"], images.counts["images"]["unlabeled"]
    if config.pseudo.first_scores == "records" and taught < unlabeled:
        raise UserError(
            f"--first_scores=records: {unlabeled - taught:,} of {unlabeled:,} unlabelled images "
            "come without probabilities, or label and prob: give records that have them in "
            f"--unlabeled_dataset={config.data.unlabeled_dataset}."
        )


def _check_budget(generation, train, batch_size):
    """UserError where a budget of images is not even one batch."""
    if 0 < train["train_images"] < batch_size:
        raise UserError(
            f"--train_images={train['train_images']} of generation {generation} is less than "
            f"its batch of {batch_size} images: raise it, or lower --labeled_batch_size or "
            "--ratio."
        )


def _check_noise(settings):
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


def _check_finetuning(stages, settings, model):
    """UserError where a network cannot be fine-tuned as it is asked for."""
    if settings is None:
        return
    train = settings["train"]
    strategies.check_divisible(
        stages.strategy, train["accumulation_steps"], labeled_batch=train["labeled_batch_size"]
    )
    models.check_image_size(settings["architecture"], settings["image_size"], "finetune_resolution")
    there, frozen = len(blocks.block_names(model)), settings["frozen_blocks"]
    if frozen > there:
        raise UserError(
            f"--finetune_frozen_blocks={frozen} of {settings['architecture']}, which has "
            f"{there or 'no known'} blocks: give {f'at most {there}' if there else 0} for it."
        )


def _checked_teacher(stages, images):
    """The adopted teacher; UserError where it does not fit the run's images and classes."""
    path, class_names = stages.config.teacher_path, images.counts["class_names"]
    model = model_files.load_model(path)
    height, width, channels = model.input_shape[1:]
    if height is None or height != width or channels != 3:
        raise UserError(
            f"--teacher={path} takes images of {model.input_shape[1:]}: expected (side, side, 3), "
            "all three fixed."
        )
    if model.output_shape[-1] != len(class_names):
        raise UserError(
            f"--teacher={path} knows {model.output_shape[-1]} classes; the run has "
            f"{len(class_names)}: give a teacher that fits, or another --dataset."
        )
    known = model_files.class_names_of(path)
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


def _shapes(model):
    """Shapes of all of a model's weights, by layer and name."""
    return {
        (layer, name): tuple(variable.shape)
        for layer, variables in weights.variables_of(model).items()
        for name, variable in variables.items()
    }
