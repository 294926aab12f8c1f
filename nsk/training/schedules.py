"""The learning rate of every step of a training, computed in advance; pure NumPy."""

from collections.abc import Sequence

import numpy as np

SCHEDULES = ("constant", "exponential", "multistep", "cosine")


def learning_rates(
    schedule: str,
    peak: float,
    num_steps: int,
    *,
    warmup_steps: int = 0,
    decay_steps: float = 1.0,
    decay_rate: float = 0.97,
    multistep_fractions: Sequence[float] = (0.5, 0.75),
    multistep_factor: float = 0.1,
) -> np.ndarray:
    """Learning rate of each step.

    - constant: `peak`.
    - exponential: `peak * decay_rate ** floor(step / decay_steps)`. Stairs are counted from step 0,
      warm-up included, as in the paper's code.
    - multistep: `peak`, times `multistep_factor` after each fraction of all steps.
    - cosine: from `peak` to 0 over the steps after warm-up.

    Warm-up replaces the schedule and is linear: step t of W has `peak * (t + 1) / W`, so that
    the first step already learns (in the paper's code its rate is 0) and the last has `peak`.

    Args:
        schedule: string, one of `SCHEDULES`.
        peak: float, the highest rate.
        num_steps: int, steps of the training.
        warmup_steps: int, W; may exceed `num_steps`: all steps are warm-up then.
        decay_steps: float above 0, length of a stair of the exponential schedule; may be
            fractional.
        decay_rate: float, factor of each stair.
        multistep_fractions: floats in [0, 1], fractions of `num_steps` at which the multistep
            schedule drops.
        multistep_factor: float, factor of each drop.

    Returns:
        float32 array of shape (num_steps,).

    Raises:
        ValueError: an unknown schedule, no steps, negative warm-up or a stair without length.

    Reference:
        [Xie et al., 2020](https://arxiv.org/abs/1911.04252): peak 0.128 at batch 2048, 5 epochs of
        warm-up, times 0.97 every 2.4 of 350 epochs.
    """
    if num_steps < 1 or warmup_steps < 0 or not decay_steps > 0:
        raise ValueError(
            f"num_steps={num_steps}, warmup_steps={warmup_steps}, decay_steps={decay_steps}: "
            "expected at least 1, at least 0 and above 0."
        )
    steps = np.arange(num_steps)
    if schedule == "constant":
        factors = np.ones(num_steps)
    elif schedule == "exponential":
        # The small term corrects step / decay_steps if it is rounded to 4.999999999 instead of 5.
        factors = decay_rate ** np.floor(steps / decay_steps + 1e-9)
    elif schedule == "multistep":
        drops = np.rint(np.asarray(multistep_fractions) * num_steps)
        factors = multistep_factor ** np.sum(steps[:, np.newaxis] >= drops, axis=1)
    elif schedule == "cosine":
        steps_after_warmup = max(num_steps - warmup_steps, 1)
        factors = 0.5 * (1 + np.cos(np.pi * (steps - warmup_steps) / steps_after_warmup))
    else:
        raise ValueError(f"schedule={schedule!r}: expected one of {', '.join(SCHEDULES)}.")
    if warmup_steps:
        factors = np.where(steps < warmup_steps, (steps + 1) / warmup_steps, factors)
    return (peak * factors).astype(np.float32)
