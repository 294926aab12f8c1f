"""The noise with which a teacher labels images under `--label_with_noise`: that of its student."""

from typing import Any

from nsk import noise
from nsk.config.fields import used_values
from nsk.data.label_noise import LabelNoise
from nsk.stages.hyperparameters import training_hyperparameters
from nsk.stages.input_streams import make_image_noise
from nsk.stages.runner import StageRunner
from nsk.store.folders import StageFolder

# Settings of the noise inside a network.
MODEL_NOISE = ("dropout_rate", "survival_probability")


def student_noise(
    runner: StageRunner, generation: int, teacher: StageFolder, images: StageFolder, name: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The noise of a student's training, for its teacher.

    Args:
        runner: the runner of stages.
        generation: number of the student, 1 or more.
        teacher: the teacher's model.
        images: the ingested images.
        name: of the stage that scores; the noise depends on it.

    Returns:
        The settings that it depends on, JSON-like; keyword arguments of `load_predictor`.
    """
    config, network = runner.config, None
    student = training_hyperparameters(config, generation, images.counts)
    # Mixed images have no label of their own.
    image_noise = student.noise.with_values(mixup_alpha=0.0, cutmix_alpha=0.0)
    rates = {name: student.model.values()[name] for name in MODEL_NOISE}
    if generation - 1 in config.trained_generations:
        network = {
            "name": config.model_name(generation - 1),
            "num_classes": images.counts["num_classes"],
            "image_size": teacher.counts["image_size"],
            **config.model.at(generation - 1).values(),
            **rates,
        }
    label_noise = LabelNoise(noise.key(student.seed, name), make_image_noise(image_noise))
    settings = {"seed": student.seed, **used_values([image_noise]), **rates}
    return settings, {"label_noise": label_noise, "noisy_network": network}
