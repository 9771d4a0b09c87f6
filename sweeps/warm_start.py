"""Warm start: the sampler learns from completed trials of earlier studies before there are any of its own."""

from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lora_core.errors import UserError
from lora_core.records import StudyRecord, TrialRecord
from reports.command import study_folder
from reports.constraints import ALIASES
from reports.study import Study, load, setting
from reports.wording import plural
from sweeps.axes import storable
from sweeps.conditions import present
from sweeps.fingerprint import RUN_CONTROL, contents, differences, flat, under
from sweeps.preflight import trial_config
from sweeps.space import Job

IRRELEVANT = ("seed", *RUN_CONTROL)  # they change a loss by chance alone, or not at all


def warm_start(job: Job, record: StudyRecord, output_dir: Path) -> tuple[list[FrozenTrial], list[str]]:
    """The trials of the studies that `search.warm_start` names, as Optuna would hold them here, and a line about each
    study. Raises UserError for a study whose losses say nothing about those of `record`."""
    found: list[FrozenTrial] = []
    notes = []
    for name in job.config.search.warm_start:
        study = load(study_folder(output_dir, name))
        _check_same_contents(record, study)
        used = [trial for trial in study.eligible if not _unlike(job, trial)]
        if not used:
            raise UserError(f"search.warm_start: {_why_none(job, study)}")
        found += [_as_optuna(job, trial) for trial in used]
        completed = plural(len(study.completed), "completed trial")
        notes.append(f"Warm start: the sampler also learns from {len(used)} of {completed} of {name}.")
    return found, notes


def _check_same_contents(record: StudyRecord, study: Study) -> None:
    if study.name == record.study:
        raise UserError(f"search.warm_start: {study.name} is this study itself. Name an earlier one.")
    ours, theirs = (contents(each) for each in (record, study.record))
    if differs := [what for what in ours if ours[what] != theirs.get(what, ours[what])]:
        raise UserError(
            f"search.warm_start: {study.name} has other {' and other '.join(differs)}, so its losses are others.\n"
            "Leave it out, or give what it was made with."
        )


def _values(job: Job, trial: TrialRecord) -> dict[str, Any]:
    """What the trial had at the axes of this search."""
    return present({axis.key: setting(trial, axis.key) for axis in job.axes}, job.conditions)


def _unlike(job: Job, trial: TrialRecord) -> list[str]:
    """In what the trial is none that this search could make; nothing if it is one."""
    axes, values = {axis.key: axis for axis in job.axes}, _values(job, trial)
    outside = [f"{key}={value} does not lie in {axes[key]}" for key, value in values.items()
               if not axes[key].contains(value)]  # fmt: skip
    if outside:
        return outside
    ours, theirs = (_relevant(config) for config in (trial_config(job.config_for(values)), trial.config))
    return differences(theirs, ours)


def _relevant(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat(config).items() if not under(key, IRRELEVANT)}


def _why_none(job: Job, study: Study) -> str:
    if not study.eligible:
        return f"{study.name} has no completed trial that could win."
    return f"no trial of {study.name} could be one of this search: {_unlike(job, study.eligible[0])[0]}."


def _as_optuna(job: Job, trial: TrialRecord) -> FrozenTrial:
    params = {key: storable(value) for key, value in _values(job, trial).items()}
    distributions = {axis.key: axis.distribution() for axis in job.axes if axis.key in params}
    objectives = [ALIASES.get(each, each) for each in job.config.search.objectives or ["val_loss"]]
    values = [trial.metrics[each] for each in objectives]
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE, params=params, distributions=distributions, values=values
    )
