"""The chain of networks: which ones, how they are initialised, and when the chain ends."""

import dataclasses

from nsk.config.fields import Section, per_generation, setting


@dataclasses.dataclass(frozen=True)
class ChainConfig(Section):
    """The chain of networks: teacher, students, and the order of their work."""

    models: str = per_generation(
        "resnet20",
        "resnet26",
        help="Networks: the teacher's name, then each student's; with a --teacher that is a .keras "
        "file, the students' alone. kerascv:NAME is a backbone of KerasCV.",
    )
    image_size: int = per_generation(
        0,
        help="Side of the square training images, pixels; 0: the images' shorter side, if it is "
        "the same for all.",
        minimum=0,
        maximum=2048,
    )
    resize_mode: str = setting(
        "auto",
        "How an image becomes the network's square. crop: the central square, so that the ends of "
        "long images are not seen | pad: the whole image between gray margins | squash: the whole "
        "image, its sides resized differently | auto: crop in training; models of nsk remember the "
        "mode that they were trained with, and are scored, evaluated and exported with it.",
        choices=("auto", "crop", "pad", "squash"),
    )
    init_from: str = per_generation(
        "scratch",
        help="Initial weights: scratch (random) | teacher (a warm start of a student that is the "
        "same network, for small budgets) | the path of a .keras or .h5 file of the same network, "
        "or of an official TensorFlow 1 checkpoint.",
    )
    teacher: str = setting(
        "",
        "A trained model that starts the chain in place of a trained teacher: a .keras file, and "
        "--models are then the students; or published weights (.h5, or a TensorFlow 1 checkpoint) "
        "of the first of --models.",
    )
    num_teachers: int = setting(
        1,
        "Number of teachers of the first student, the same network with different initial weights "
        "and noise. Their mean probabilities teach, and are generation 0.",
        minimum=1,
        maximum=100,
    )
    select: str = setting(
        "each_generation",
        "each_generation: every teacher selects images | once: the first selection is kept, and "
        "later teachers label the same images again.",
        choices=("each_generation", "once"),
    )
    chance_p_value: float = setting(
        0.01,
        "A teacher is rejected if predictions that are independent of the true classes, with the "
        "same frequencies, would be as accurate on dev with a probability above this (Fisher's "
        "exact test for two classes, a permutation test for more; one-sided).",
        minimum=0.0,
        maximum=1.0,
        changes_results=False,
    )
    decide_by: str = setting(
        "accuracy",
        "The metric on dev that decides which generation is the best, when --patience ends a chain "
        "and whether a student is worse than its teacher: accuracy | balanced_accuracy: the mean "
        "over classes of the share of their images that are found, for rare classes | nll: the "
        "negative log-likelihood.",
        choices=("accuracy", "balanced_accuracy", "nll"),
        changes_results=False,
    )
    patience: int = setting(
        0,
        "Stop after this many students in a row that are not better on dev; 0: off.",
        minimum=0,
        changes_results=False,
    )

    @property
    def training_resize_mode(self) -> str:
        """How images become squares if no model says it: `crop`, `pad` or `squash`."""
        return "crop" if self.resize_mode == "auto" else self.resize_mode

    @property
    def has_whole_teacher(self) -> bool:
        """Whether the given teacher is a whole model, which is not one of `models`."""
        return self.teacher.endswith(".keras")
