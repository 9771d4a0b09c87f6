"""Learning rate by step: a linear warm-up, then constant, linear or cosine decay to zero."""

import math

from lora_core.config import OptimizerConfig

BETAS = (0.9, 0.999)  # of Adam (Kingma & Ba 2015)


def learning_rate(optimizer: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of step `step` (0 … steps-1). The first `warmup`·steps rise linearly to the full rate."""
    warm = round(optimizer.warmup * steps)
    if step < warm:
        return optimizer.learning_rate * (step + 1) / (warm + 1)
    return optimizer.learning_rate * _decay(optimizer.schedule, (step - warm) / max(1, steps - warm))


def _decay(schedule: str, done: float) -> float:
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if schedule == "linear" else 1.0
