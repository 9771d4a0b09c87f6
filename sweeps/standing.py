"""How a study stands, by what lies on disk: no MLX, no MLflow, no Optuna."""

import math
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lora_core.records import CHECKPOINT, StudyRecord, TrialRecord, load_metrics, load_study, load_trial, load_trials
from reports.at_work import at_work
from reports.study import Study


@dataclass
class Standing(Study):
    """A study, or a single run, as it stands. `curves`: those of the running trials; `saved`: the names of those of
    them that have a checkpoint to go on from."""

    at_work: bool
    saved: set[str]

    @property
    def ended(self) -> list[TrialRecord]:
        return [trial for trial in self.searched if trial.state != "running"]

    @property
    def running(self) -> list[TrialRecord]:
        """In training right now, reference rows too. Without a process at work, they wait for a resume."""
        return [trial for trial in self.trials if trial.state == "running"]

    @property
    def reasons(self) -> Counter[str]:
        return Counter(trial.reason or "no reason known" for trial in self.searched if trial.state == "failed")

    @property
    def total_steps(self) -> int:
        return sum(map(self.reached, self.trials))

    @property
    def seconds(self) -> float:
        """For how long at least one trial was in training."""
        spans = sorted(span for trial in self.trials if (span := self._span(trial)))
        total, until = 0.0, -math.inf
        for begin, end in spans:
            total += max(0.0, end - max(begin, until))
            until = max(until, end)
        return total

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the trials that ended; None while none has."""
        done = sum(trial.role != "base" and trial.state != "running" for trial in self.trials)
        if not done or not self.ended:
            return None
        under_way = sum(self.progress(trial) for trial in self.running)
        left = max(0.0, self.record.n_trials - len(self.ended) - under_way)
        return self.seconds / (done + under_way) * left

    def progress(self, trial: TrialRecord) -> float:
        """The done part of a running trial, as of its last evaluation."""
        return self.reached(trial) / max(1, trial.planned_steps)

    def _span(self, trial: TrialRecord) -> tuple[float, float] | None:
        """When it was in training, in seconds since 1970."""
        begin, end = _moment(trial.started), _moment(trial.ended)
        if begin is None:
            return None
        if end is None:
            end = datetime.now(UTC).timestamp() if self.at_work else begin
        return begin, end


def standing(folder: Path) -> Standing:
    """Reads a study's folder."""
    record = load_study(folder)
    single = record.kind == "train"
    trials = _single(folder) if single else load_trials(folder)
    places = {trial.name: folder if single else folder / trial.name for trial in trials}
    curves = {trial.name: load_metrics(places[trial.name]) for trial in trials if trial.state == "running"}
    saved = {name for name in curves if (places[name] / CHECKPOINT).exists()}
    return Standing(folder, record, trials, curves, at_work(folder), saved)


def shares_folder(record: StudyRecord) -> bool:
    """Whether all machines at work on the study write to one folder."""
    return record.config["cluster"].get("shared_folder", True)


def has_ended(folder: Path) -> bool:
    """Whether a trial's folder holds a trial that has ended, however it did."""
    return (folder / "trial.json").exists() and load_trial(folder).state != "running"


def _single(folder: Path) -> list[TrialRecord]:
    return [load_trial(folder)] if (folder / "trial.json").exists() else []


def _moment(iso: str | None) -> float | None:
    return datetime.fromisoformat(iso).timestamp() if iso else None
