"""Points that fill a space more evenly than random ones: a scrambled Sobol sequence over the axes."""

import math
import warnings
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution


def point(distributions: dict[str, BaseDistribution], seed: int, index: int) -> dict[str, Any]:
    """The point number `index` (from 0) of the sequence that `seed` scrambles."""
    from scipy.stats.qmc import Sobol  # slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one point at a time is not balanced, all of them are
        sequence = Sobol(len(distributions), scramble=True, rng=seed)
        if index:
            sequence.fast_forward(index)
        shares = sequence.random(1)[0]
    return {
        name: value_at(each, float(share)) for (name, each), share in zip(distributions.items(), shares, strict=True)
    }


def value_at(distribution: BaseDistribution, share: float) -> Any:
    """The value that has `share` (0 to below 1) of the distribution below it."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(share * len(distribution.choices))]
    low, high, step = distribution.low, distribution.high, distribution.step  # type: ignore[attr-defined]
    log = distribution.log  # type: ignore[attr-defined]
    if step is None:
        return min(high, max(low, _between(low, high, share, log)))
    # Each value of a grid owns the half step on either side of it.
    found = _between(low - step / 2, high + step / 2, share, log)
    index = min(round((high - low) / step), max(0, round((found - low) / step)))
    value = min(high, low + index * step)
    return int(value) if isinstance(distribution, IntDistribution) else value


def _between(low: float, high: float, share: float, log: bool) -> float:
    if log:
        return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return low + share * (high - low)
