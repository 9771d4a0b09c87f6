"""Which settings matter: Optuna's PED-ANOVA over the completed trials."""

import warnings
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from lora_core.records import TrialRecord
from reports.study import Study, conditional_keys, setting, value
from reports.wording import plural
from reports.wording import setting as written

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.distributions import BaseDistribution

MIN_COMPLETED = 4
HINT_BELOW = 20  # methods still disagree about the order here
MIN_BEST = 5  # PED-ANOVA wants at least five trials among the best

Axis = dict[str, Any]


@dataclass
class Importance:
    """`shares`: key → part of the whole (all add up to 1), largest first. `why_not`: why there are none."""

    method: str = ""
    completed: int = 0
    best: int = 0  # the trials that PED-ANOVA calls good
    left_out: int = 0  # completed, but outside the present space
    shares: dict[str, float] = field(default_factory=dict)
    why_not: str | None = None
    not_everywhere: list[str] = field(default_factory=list)  # axes that only some trials have, left out

    @property
    def caution(self) -> str | None:
        if not self.shares or self.completed >= HINT_BELOW:
            return None
        return f"With {self.completed} completed trials the order is a hint, not a finding."


def compute(study: Study) -> Importance:
    sometimes, axes = conditional_keys(study), compared(study)
    why_not = _why_not(study, axes)
    if why_not is not None:
        return Importance(completed=len(study.completed), why_not=why_not)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's about experimental methods
        found = _measure(study, axes)
    return replace(found, not_everywhere=sorted(sometimes))


def compared(study: Study) -> list[Axis]:
    """The axes with several values that every trial has."""
    sometimes = conditional_keys(study)
    return [axis for axis in study.record.axes if not _single(axis) and axis["key"] not in sometimes]


def _single(axis: Axis) -> bool:
    choices = axis.get("choices")
    return len(choices) < 2 if choices is not None else axis.get("low") == axis.get("high")


def _why_not(study: Study, axes: list[Axis]) -> str | None:
    values = {value(trial) for trial in study.completed}
    if len(axes) == 0:
        return "Not computed: no setting was searched."
    if len(axes) == 1:
        return f"Not computed: only {axes[0]['key']} was searched throughout, so there is nothing to compare it with."
    if len(study.completed) < MIN_COMPLETED:
        return f"Not computed: {plural(len(study.completed), 'trial')} completed, {MIN_COMPLETED} are needed."
    if len(values) == 1:
        return f"Not computed: all {plural(len(study.completed), 'completed trial')} have the same loss."
    return None


def _measure(study: Study, axes: list[Axis]) -> Importance:
    import optuna

    mirror, kept = _mirror(study, axes)
    if kept < MIN_COMPLETED:
        return Importance(completed=kept, why_not="Not computed: too few trials lie inside the present space.")
    # Optuna's default takes the best tenth, which below 50 trials is fewer than PED-ANOVA asks for.
    quantile = min(0.5, max(0.1, MIN_BEST / kept))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
    shares = optuna.importance.get_param_importances(mirror, evaluator=evaluator)
    method, outside = f"PED-ANOVA (Optuna {optuna.__version__})", len(study.completed) - kept
    return Importance(method, kept, ceil(quantile * kept), outside, shares)


def _mirror(study: Study, axes: list[Axis]) -> tuple["OptunaStudy", int]:
    """The completed trials as an Optuna study in memory, and how many there are."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    mirror = optuna.create_study(direction="maximize" if study.record.direction == "maximize" else "minimize")
    distributions = {axis["key"]: distribution(axis) for axis in axes}
    for trial in study.completed:
        # A trial from before a bound was moved does not fit the distribution any more.
        if (params := _drawn(trial, axes, distributions)) is not None:
            own = {key: distributions[key] for key in params}
            mirror.add_trial(optuna.create_trial(params=params, distributions=own, value=value(trial)))
    return mirror, len(mirror.trials)


def _drawn(trial: TrialRecord, axes: list[Axis], known: dict[str, "BaseDistribution"]) -> dict[str, Any] | None:
    """What Optuna would hold for `trial`, or None where a value lies outside its distribution."""
    params: dict[str, Any] = {}
    for axis in axes:
        key = axis["key"]
        found = trial.params[key] if key in trial.params else setting(trial, key)
        params[key] = label(found) if axis.get("choices") is not None else found
        try:
            inside = known[key]._contains(known[key].to_internal_repr(params[key]))
        except (TypeError, ValueError):
            inside = False
        if not inside:
            return None
    return params


def distribution(axis: Axis) -> "BaseDistribution":
    """The Optuna distribution of an axis of `study.json`."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.get("choices") is not None:
        return CategoricalDistribution([label(choice) for choice in axis["choices"]])
    low, high, step, log = axis["low"], axis["high"], axis.get("step"), bool(axis.get("log"))
    if axis.get("kind") == "int":
        return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=log, step=step)


def label(choice: Any) -> Any:
    """A categorical choice as Optuna can hold it: lists and maps as text."""
    return written(choice) if isinstance(choice, list | dict) else choice
