"""The trainer: steps, losses, schedules, optimizers, averages, checkpoints and curves."""
