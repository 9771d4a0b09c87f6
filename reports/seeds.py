"""Trials that were trained with several seeds: their means, their spread, and whether a lead is more than noise."""

import math
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

LEVEL = 0.95
RULE = "95 % interval of Student's paired t-test"


@dataclass
class Seeds:
    """A trial with its losses by seed: 0 is its own, the others are those of its repeats, which are the same seeds for
    every trial. `failed`: repeats without a loss."""

    name: str
    params: dict[str, Any]
    losses: dict[int, float]
    failed: int = 0
    mean: float = field(init=False)
    sd: float | None = field(init=False)  # of the sample; None for a single loss

    def __post_init__(self) -> None:
        losses = list(self.losses.values())
        self.mean = fmean(losses)
        self.sd = stdev(losses) if len(losses) > 1 else None

    @property
    def n(self) -> int:
        return len(self.losses)


def ranked(found: list[Seeds]) -> list[Seeds]:
    """Best mean first. Settings that fail with some seed cannot be relied on, and their mean leaves the failures
    out: they come after all others."""
    return sorted(found, key=lambda each: (each.failed > 0, each.mean))


@dataclass
class Lead:
    """How far the winner's loss lies below that of `over` with the same seed: `nats` on average over the `pairs` of
    seeds that both have, and with `ahead` of them it does. `margin`: half of the interval around `nats`; a lead that
    exceeds it is more than noise. Both None with a single pair."""

    over: str
    nats: float
    pairs: int
    ahead: int
    margin: float | None = None
    beyond_noise: bool | None = None


def lead(winner: Seeds, other: Seeds) -> Lead:
    """Seed by seed, since the order of the data moves the losses of all trials alike: only the rest is noise between
    them. Their own seed is one of the pairs although it chose them: all finalists were lucky there, which speaks for
    none of them."""
    differences = [other.losses[seed] - loss for seed, loss in winner.losses.items() if seed in other.losses]
    pairs, nats, ahead = len(differences), fmean(differences), sum(each > 0 for each in differences)
    if pairs < 2:
        return Lead(other.name, nats, pairs, ahead)
    margin = _quantile((1 + LEVEL) / 2, pairs - 1) * stdev(differences) / math.sqrt(pairs)
    return Lead(other.name, nats, pairs, ahead, margin, nats > margin)


def _quantile(probability: float, freedom: int) -> float:
    from scipy.stats import t  # slow to import, and most studies' summaries do without

    return float(t.ppf(probability, freedom))
