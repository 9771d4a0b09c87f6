"""The test set: scored once, when everything is decided."""

import math
from pathlib import Path

from lora_core.records import TrialRecord, adapter_damage, save_trial
from reports.study import Study, load
from sweeps.client import Worker
from sweeps.telling import Teller

METRIC = "test_loss"


def score(worker: Worker, folder: Path, tracker: Teller) -> list[str]:
    """Scores what is to be quoted and has not been scored yet, and notes it with each trial; returns a line for each
    that it could not score. Raises WorkerDied."""
    study = load(folder)
    problems = []
    for trial in due(study):
        if reason := _score(worker, study, trial):
            problems.append(f"{trial.name} was not scored on the test set: {reason}")
        else:
            tracker.log_number(trial.name, METRIC, trial.metrics[METRIC])
    return problems


def due(study: Study) -> list[TrialRecord]:
    """Base, default, the finalists and the winner, where they lack a score."""
    named = {each.name for each in (*study.finalists, study.winner) if each is not None}
    rows = [study.base, study.default, *(trial for trial in study.completed if trial.name in named)]
    return [trial for trial in rows if trial is not None and trial.state == "complete" and METRIC not in trial.metrics]


def _score(worker: Worker, study: Study, trial: TrialRecord) -> str | None:
    """Why it could not be done; None if it was."""
    adapter, reason = usable_adapter(study, trial)
    return reason or score_trial(worker, study.folder / trial.name, trial, adapter)


def usable_adapter(study: Study, trial: TrialRecord) -> tuple[str | None, str | None]:
    """The folder of the trial's adapter, which the base model has none of, or why it is not to be used."""
    if trial.role == "base":
        return None, None
    if trial.adapter is None:
        return None, "it has no adapter"
    return trial.adapter, adapter_damage(trial, Path(trial.adapter))


def score_trial(worker: Worker, folder: Path, trial: TrialRecord, adapter: str | None) -> str | None:
    """Scores the test set with `adapter`, or the base model, and notes it in the trial's `folder`. Returns why it
    could not be done; None if it was. Raises WorkerDied."""
    scored = worker.score(adapter, trial.config)
    if scored.loss is None or not math.isfinite(scored.loss):
        return scored.reason or "the loss is not finite"
    trial.metrics[METRIC] = scored.loss
    save_trial(folder, trial)
    return None
