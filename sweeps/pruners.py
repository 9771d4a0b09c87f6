"""Pruners: which running trials are stopped because they are behind the others.

They decide from reported losses alone, those of trials that still run as well as those of trials that have ended. So
once all trials of a step have reported, it makes no difference which of them is judged first, nor on which machine.
"""

import math
from statistics import median
from typing import Any, Protocol

from optuna.trial import FrozenTrial

GOLDEN = (math.sqrt(5) - 1) / 2


class Pruner(Protocol):
    def beaten(self, trial: FrozenTrial, step: int, trials: list[FrozenTrial]) -> bool:
        """Whether `trial`, which has just reported `step`, should be stopped; `trials`: all of the study."""


class Nobody:
    """Stops no trial."""

    def beaten(self, trial: FrozenTrial, step: int, trials: list[FrozenTrial]) -> bool:
        return False


class Median:
    """Stops a trial whose best loss so far is above the median loss of all others that have reached this step.

    Optuna's pruner of this name compares with completed trials only, so of trials that start together it stops
    none. The median of those that reach a step is the same thing, without waiting for them to end.
    """

    def __init__(self, n_startup_trials: int = 5, n_warmup_steps: int = 0, interval_steps: int = 1) -> None:
        self.n_startup_trials = n_startup_trials
        self.n_warmup_steps = n_warmup_steps
        self.interval_steps = interval_steps

    def beaten(self, trial: FrozenTrial, step: int, trials: list[FrozenTrial]) -> bool:
        if step < self.n_warmup_steps or not self._due(trial, step):
            return False
        others = [losses(other).get(step) for other in trials if other.number != trial.number]
        there = [loss for loss in others if loss is not None]
        if len(there) < max(1, self.n_startup_trials):
            return False
        own = [loss for at, loss in losses(trial).items() if at <= step]
        return bool(own) and min(own) > median(there)

    def _due(self, trial: FrozenTrial, step: int) -> bool:
        """Whether this is the trial's first report in an interval."""
        before = _before(trial, step)
        return before < self.n_warmup_steps or self._interval(before) < self._interval(step)

    def _interval(self, step: int) -> int:
        return (step - self.n_warmup_steps) // self.interval_steps


class Halving:
    """Asynchronous successive halving (ASHA, Li et al. 2020).

    Its rungs are the steps `min_resource`·`reduction_factor`^i. A trial that reaches a rung goes on if its loss there
    is among the best 1/`reduction_factor` of all that have reached it so far, or the best of them.
    """

    def __init__(self, min_resource: int = 1, reduction_factor: int = 3) -> None:
        self.min_resource = min_resource
        self.reduction_factor = reduction_factor

    def beaten(self, trial: FrozenTrial, step: int, trials: list[FrozenTrial]) -> bool:
        rung, before = self.min_resource, _before(trial, step)
        while rung <= step:
            # Evaluations need not fall on rungs: a rung is reached by the first one at or after it.
            if rung > before and not self._promoted(trial, rung, trials):
                return True
            rung *= self.reduction_factor
        return False

    def _promoted(self, trial: FrozenTrial, rung: int, trials: list[FrozenTrial]) -> bool:
        found = {other.number: _loss_at(other, rung) for other in trials}
        there = sorted(loss for loss in found.values() if loss is not None)
        own = found.get(trial.number)
        # A loss that is no number has ended its trial already.
        return own is None or own <= there[max(1, len(there) // self.reduction_factor) - 1]


class Hyperband:
    """Successive halving in brackets that differ in their first rung (Li et al. 2018), each for itself.

    A bracket gets its share of the trials by their numbers, evenly spread, so that a study of another name gives the
    same results.
    """

    def __init__(self, min_resource: int = 1, reduction_factor: int = 3, max_resource: int = 1) -> None:
        firsts = [min_resource]
        while firsts[-1] * reduction_factor <= max_resource:
            firsts.append(firsts[-1] * reduction_factor)
        self.brackets = [Halving(first, reduction_factor) for first in firsts]
        count = len(firsts)
        self.shares = [math.ceil(count * reduction_factor**s / (s + 1)) for s in reversed(range(count))]

    def beaten(self, trial: FrozenTrial, step: int, trials: list[FrozenTrial]) -> bool:
        bracket = self.bracket(trial.number)
        mates = [other for other in trials if self.bracket(other.number) == bracket]
        return self.brackets[bracket].beaten(trial, step, mates)

    def bracket(self, number: int) -> int:
        at = (number + 0.5) * GOLDEN % 1 * sum(self.shares)
        return next(i for i in range(len(self.shares)) if at < sum(self.shares[: i + 1]))


def make_pruner(settings: dict[str, Any], steps: int) -> Pruner:
    """The pruner that `search.pruner` describes, for trials of `steps` optimizer steps."""
    options = {key: value for key, value in settings.items() if key != "name"}
    if settings["name"] == "hyperband":
        return Hyperband(**options, max_resource=steps)
    kinds = {"median": Median, "asha": Halving, "none": Nobody}
    return kinds[settings["name"]](**options)


def losses(trial: FrozenTrial) -> dict[int, float]:
    """Its reports that are losses, by step: neither NaN nor -inf, which would beat all others."""
    return {step: loss for step, loss in sorted(trial.intermediate_values.items()) if loss > -math.inf}


def _loss_at(trial: FrozenTrial, rung: int) -> float | None:
    return next((loss for step, loss in losses(trial).items() if step >= rung), None)


def _before(trial: FrozenTrial, step: int) -> int:
    """The step of its report before `step`; -1 if there is none."""
    return max((at for at in trial.intermediate_values if at < step), default=-1)
