"""One link of the chain: a model and the stages that it came from."""

import dataclasses

from nsk.store.folders import Stage


@dataclasses.dataclass(frozen=True)
class Generation:
    """The stages of one generation.

    Attributes:
        trained: the trained (or adopted) model.
        model: the same, or fine-tuned at the resolution of the test; the one that is used.
        evaluation: its predictions and metrics on dev and test.
        scores, selection, pseudo_labels: what a student learned from, made by the generation before
            it; None for a teacher.
    """

    trained: Stage
    model: Stage
    evaluation: Stage
    scores: Stage | None = None
    selection: Stage | None = None
    pseudo_labels: Stage | None = None
