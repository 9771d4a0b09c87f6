"""Sample answers: asked for once everything is decided, for the report to show side by side."""

from dataclasses import asdict
from pathlib import Path

from lora_core.records import TrialRecord, write_json
from lora_core.samples import ANSWER_TOKENS, Answer
from reports import samples
from reports.samples import Row, Samples
from reports.study import Study, load
from sweeps.client import Worker
from sweeps.scoring import usable_adapter


def sample(worker: Worker, folder: Path, rows: int) -> list[str]:
    """Has so many samples of the data answered by base model, default settings and winner, unless they have been;
    returns a line for each trial that could not. Raises WorkerDied."""
    study, problems = load(folder), list[str]()
    asked, before = _asked(study), samples.load(folder)
    wanted = {trial.name: trial.adapter_sha256 for trial in asked}
    if not asked or (before.wanted, before.adapters) == (rows, wanted):
        return []
    found = Samples(ANSWER_TOKENS, rows)
    for trial in asked:
        answers, reason = _answers(worker, study, trial, rows)
        if reason is None:
            _add(found, trial, answers)
        else:
            problems.append(f"{trial.name} has not answered the samples: {reason}")
    write_json(folder / samples.FILE, asdict(found))
    return problems


def _asked(study: Study) -> list[TrialRecord]:
    if study.winner is None:
        return []
    trials = (study.base, study.default, study.winner)
    return [trial for trial in trials if trial is not None and trial.state == "complete"]


def _answers(worker: Worker, study: Study, trial: TrialRecord, rows: int) -> tuple[list[Answer], str | None]:
    adapter, reason = usable_adapter(study, trial)
    if reason is not None:
        return [], reason
    sampled = worker.sample(adapter, trial.config, rows)
    return sampled.answers, sampled.reason


def _add(found: Samples, trial: TrialRecord, answers: list[Answer]) -> None:
    """The samples are the same for all, in the same order."""
    found.adapters[trial.name] = trial.adapter_sha256
    found.rows = found.rows or [Row(each.prompt, each.expected) for each in answers]
    for row, each in zip(found.rows, answers, strict=True):
        row.answers[trial.name] = each.answer
