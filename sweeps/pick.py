"""Finds an adapter by what the user calls it: STUDY (its winner), STUDY/TRIAL, STUDY/7, or a folder with its files."""

from dataclasses import dataclass
from pathlib import Path

from lora_core.adapter_folder import CONFIG
from lora_core.errors import UserError, near
from lora_core.records import TrialRecord, adapter_damage
from reports.command import find_study, study_folder
from reports.study import Study
from sweeps.standing import standing
from sweeps.study import trial_name


@dataclass(frozen=True)
class Picked:
    name: str
    folder: Path


def pick(output_dir: Path, text: str) -> Picked:
    """The adapter meant by `text`. Raises UserError, with near matches, if there is none."""
    if (Path(text) / CONFIG).is_file():
        return Picked(text, Path(text))
    return of_trial(*study_and_trial(output_dir, text))


def study_and_trial(output_dir: Path, text: str) -> tuple[Study, str | None]:
    """The study meant by STUDY or STUDY/TRIAL, and what its trial is called there."""
    name, _, trial = text.rstrip("/").rpartition("/")
    if name not in ("", "train") and not find_study(output_dir, text):
        return standing(study_folder(output_dir, name)), trial
    return standing(study_folder(output_dir, text)), None


def of_trial(study: Study, trial: str | None = None) -> Picked:
    """The adapter of a trial of the study, given by name or number; without one, that of the winner."""
    record = record_of(study, trial)
    if record.adapter is None:
        raise UserError(f"{record.name} of {study.name} has no adapter ({record.state}).{_others(study)}")
    if damage := adapter_damage(record, Path(record.adapter)):
        raise UserError(f"{record.name} of {study.name}: {damage}.")
    return Picked(record.name, Path(record.adapter))


def record_of(study: Study, trial: str | None) -> TrialRecord:
    """The same trial's record."""
    return _winner(study) if trial is None else _trial(study, trial)


def _winner(study: Study) -> TrialRecord:
    if study.winner is None:
        raise UserError(f"{study.name} has no winner yet: no trial has completed.")
    return study.winner


def _trial(study: Study, text: str) -> TrialRecord:
    name = trial_name(int(text)) if text.isdecimal() else text
    known = {trial.name: trial for trial in study.trials}
    if name not in known:
        raise UserError(f"{study.name} has no trial {text!r}.{near(text, known) or _others(study)}")
    return known[name]


def _others(study: Study) -> str:
    names = [trial.name for trial in study.trials if trial.adapter is not None]
    return f" With an adapter: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}." if names else ""
