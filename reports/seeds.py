"""Trials that were trained with several seeds: their means, their spread, and whether a lead is more than noise."""

import math
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

LEVEL = 0.05  # two-sided
RULE = "Student's two-sample t-test, two-sided at 5 %"


@dataclass
class Seeds:
    """A trial with the losses of its own seed and of its repeats, in this order. `failed`: repeats without a loss."""

    name: str
    params: dict[str, Any]
    losses: list[float]
    failed: int = 0
    mean: float = field(init=False)
    sd: float | None = field(init=False)  # of the sample; None for a single loss

    def __post_init__(self) -> None:
        self.mean = fmean(self.losses)
        self.sd = stdev(self.losses) if len(self.losses) > 1 else None

    @property
    def n(self) -> int:
        return len(self.losses)


def ranked(found: list[Seeds]) -> list[Seeds]:
    """Best mean first. Settings that fail with some seed cannot be relied on, and their mean leaves the failures
    out: they come after all others."""
    return sorted(found, key=lambda each: (each.failed > 0, each.mean))


@dataclass
class Lead:
    """How far the winner's mean lies below that of `over`, and whether this is more than noise: whether `t`, the
    difference of the means divided by its pooled standard error, exceeds `needed`, Student's t at `LEVEL`. All None
    where either has a single loss."""

    over: str
    nats: float
    standard_error: float | None = None
    t: float | None = None
    needed: float | None = None
    beyond_noise: bool | None = None


def lead(winner: Seeds, other: Seeds) -> Lead:
    nats = other.mean - winner.mean
    if winner.sd is None or other.sd is None:
        return Lead(other.name, nats)
    freedom = winner.n + other.n - 2
    variance = ((winner.n - 1) * winner.sd**2 + (other.n - 1) * other.sd**2) / freedom
    error = math.sqrt(variance * (1 / winner.n + 1 / other.n))
    t = nats / error if error else math.copysign(math.inf, nats) if nats else 0.0
    needed = _quantile(1 - LEVEL / 2, freedom)
    return Lead(other.name, nats, error, t, needed, t > needed)


def _quantile(probability: float, freedom: int) -> float:
    from scipy.stats import t  # slow to import, and most studies' summaries do without

    return float(t.ppf(probability, freedom))
