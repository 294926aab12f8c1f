"""How a teacher scores unlabelled images."""

import dataclasses

from nsk.config.fields import Section, setting

# With more classes, only the most probable ones of each image are stored.
DENSE_CLASSES = 1000
SPARSE_CLASSES = 100


@dataclasses.dataclass(frozen=True)
class ScoringConfig(Section):
    """How a teacher scores unlabelled images."""

    unlabeled_fraction: float = setting(
        1.0,
        "Share of the unlabelled images that is scored and used; a random choice by "
        "--split_seed. The images of a smaller share are among those of a larger one.",
        minimum=1e-9,
        maximum=1.0,
    )
    label_with_noise: bool = setting(
        False,
        "Score the unlabelled images with the noise of the student's training: on the images, but "
        "for mixup and CutMix, and inside the network; an ablation of the paper. Dev is scored "
        "without noise.",
    )
    score_views: str = setting(
        "image",
        "Views of an image that a teacher scores: image: the clean image | mirror: the mean of the "
        "probabilities of the clean image and its mirror image, at twice the cost.",
        choices=("image", "mirror"),
    )
    first_scores: str = setting(
        "teacher",
        "Source of the first student's pseudo-labels: teacher | records: the probabilities stored "
        "with the images of --unlabeled_dataset=tfrecord:..., as in official pseudo-label records.",
        choices=("teacher", "records"),
    )
    top_k: int = setting(
        0,
        "Number of most probable classes whose log-probabilities are stored per unlabelled image; "
        "the remaining probability is stored as one number and spread evenly when read. 0: all of "
        f"up to {DENSE_CLASSES:,} classes, the top {SPARSE_CLASSES} of more.",
        minimum=0,
    )

    def num_stored_classes(self, num_classes: int) -> int:
        """How many log-probabilities are stored per image; 0: those of all classes."""
        top_k = self.top_k or (SPARSE_CLASSES if num_classes > DENSE_CLASSES else 0)
        return top_k if top_k < num_classes else 0
