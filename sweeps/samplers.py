"""Samplers by name, and the wrapper that makes a search repeatable and free of duplicates."""

import itertools
import math
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from sweeps.conditions import Conditions, present
from sweeps.lowdiscrepancy import point

Distributions = dict[str, BaseDistribution]
SAMPLERS: dict[str, type[BaseSampler]] = {
    "tpe": TPESampler, "random": RandomSampler, "cmaes": CmaEsSampler, "gp": GPSampler, "nsga2": NSGAIISampler,
}  # fmt: skip
# Axes that these cannot model are drawn at random, which is not worth a warning for every one.
SILENT = {"cmaes": {"warn_independent_sampling": False}, "gp": {"warn_independent_sampling": False}}
REDRAWS = 20


class DistinctSampler(BaseSampler):
    """Draws with a sampler made anew for every trial, seeded from (seed, trial number, attempt).

    So a resumed search goes on as an undisturbed one would. What was drawn before is drawn again, up to
    REDRAWS times; then the first setting not yet tried is taken from a finite space. `grid` does only that.
    The first trials have the values `enqueued` for them, by their numbers. Axes that do not exist, given the others,
    are drawn too, and then left out. `earlier`: trials of other studies to learn from. `ended`: settings of trials by
    number that stay what they are: drawn once more, with others ended by now, they might be others.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        seed: int,
        distributions: Distributions,
        enqueued: Sequence[dict[str, Any]] = (),
        conditions: Conditions | None = None,
        earlier: Sequence[FrozenTrial] = (),
        ended: Mapping[int | None, dict[str, Any]] = MappingProxyType({}),
    ) -> None:
        self.ended = ended
        self.earlier = earlier
        self.conditions = conditions or {}
        self.enqueued = enqueued
        self.settings = settings
        self.seed = seed
        self.distributions = distributions

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Distributions:
        return self.distributions

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        if trial.number in self.ended:
            return self.ended[trial.number]
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        tried = {_point(other.params) for other in others}
        first = self.enqueued[trial.number] if trial.number < len(self.enqueued) else {}
        params: dict[str, Any] = {}
        for attempt in range(0 if self.settings["name"] == "grid" else REDRAWS):
            params = present(self._draw(study, trial, attempt) | first, self.conditions)
            if _point(params) not in tried:
                return params
        return self._untried(tried, first) or self._untried(tried, {}) or params

    def _untried(self, tried: Container[Any], like: dict[str, Any]) -> dict[str, Any] | None:
        """The first point of a finite space that was not tried, among those with the values of `like`."""
        points, wanted = grid(self.distributions, self.conditions), set(_point(like))
        return next((each for each in points if _point(each) not in tried and wanted <= set(_point(each))), None)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise ValueError(f"{param_name} is no axis of this study")

    def _draw(self, study: optuna.Study, trial: FrozenTrial, attempt: int) -> dict[str, Any]:
        name = self.settings["name"]
        if name == "qmc":
            return point(self.distributions, self.seed, trial.number + attempt)
        # A Gaussian process takes seconds to propose the same once more.
        sampler = self._sampler("random" if name == "gp" and attempt else name, trial, attempt)
        study, trial = self._with_earlier(study, trial)
        space = sampler.infer_relative_search_space(study, trial)
        params = sampler.sample_relative(study, trial, space)
        for key, distribution in self.distributions.items():
            if key not in params:
                params[key] = sampler.sample_independent(study, trial, key, distribution)
        return params

    def _with_earlier(self, study: optuna.Study, trial: FrozenTrial) -> tuple[optuna.Study, FrozenTrial]:
        """Study and trial as the sampler is to see them: in a copy with the earlier trials, after the study's own,
        which keep their numbers."""
        if not self.earlier:
            return study, trial
        seen = optuna.create_study(directions=study.directions)
        seen.add_trials([*study.get_trials(deepcopy=False), *self.earlier])
        return seen, seen.get_trials(deepcopy=False)[trial.number]

    def _sampler(self, name: str, trial: FrozenTrial, attempt: int) -> BaseSampler:
        options = {key: value for key, value in self.settings.items() if key != "name"}
        seed = int(np.random.SeedSequence([self.seed, trial.number, attempt]).generate_state(1)[0])
        mine = options | SILENT.get(name, {}) if name == self.settings["name"] else {}
        if self.conditions and mine.get("multivariate"):
            mine["group"] = True  # axes that exist together are modelled together
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return SAMPLERS[name](seed=seed, **mine)  # type: ignore[call-arg]


def grid(distributions: Distributions, conditions: Conditions | None = None) -> Iterator[dict[str, Any]]:
    """Every point of a finite space, in order and once; nothing for an infinite one."""
    if cells(distributions) is None:
        return
    seen = set()
    for values in itertools.product(*(_values(d) for d in distributions.values())):
        params = present(dict(zip(distributions, values, strict=True)), conditions or {})
        if _point(params) not in seen:
            seen.add(_point(params))
            yield params


def cells(distributions: Distributions, conditions: Conditions | None = None) -> int | None:
    """How many points the space has; None if a continuous axis makes that endless."""
    known = conditions or {}
    if any(_size(distribution) is None for distribution in distributions.values()):
        return None

    def below(key: str) -> int:
        """The points of an axis, with those axes that exist for some of its values only."""
        others = [other for other, condition in known.items() if condition.key == key]
        if not others:
            return _size(distributions[key]) or 0
        sizes = [(known[other], below(other)) for other in others]
        values = _values(distributions[key])
        return sum(math.prod(size for condition, size in sizes if condition.allows(value)) for value in values)

    return math.prod(below(key) for key in distributions if key not in known)


def exhausted(
    distributions: Distributions, trials: Sequence[FrozenTrial], conditions: Conditions | None = None
) -> bool:
    """Whether every point of the space has been tried."""
    total = cells(distributions, conditions)
    return total is not None and len({_point(trial.params) for trial in trials}) >= total


def _size(distribution: BaseDistribution) -> int | None:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    low, high, step = distribution.low, distribution.high, distribution.step  # type: ignore[attr-defined]
    if distribution.single():
        return 1
    return None if step is None else round((high - low) / step) + 1


def _values(distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    # In decimals, because 0.1 + 2 * 0.1 lies beyond 0.3, where Optuna refuses it.
    low, step = (Decimal(str(end or 0)) for end in (distribution.low, distribution.step))  # type: ignore[attr-defined]
    kind = int if isinstance(distribution, IntDistribution) else float
    return [kind(low + i * step) for i in range(_size(distribution) or 0)]


def _point(params: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, _text(value)) for name, value in params.items()))


def _text(value: Any) -> str:
    """Points of a grid of floats may differ in their last bits: 0.1 + 2 * 0.1 is not 0.3."""
    return f"{value:.12g}" if isinstance(value, float) else repr(value)
