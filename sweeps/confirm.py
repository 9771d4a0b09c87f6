"""Confirming the winner: which trials are trained again after the search, and how often."""

from pathlib import Path

from lora_core.records import TrialRecord
from lora_core.trial import TrialSpec
from reports.study import load
from sweeps.config import ConfirmConfig
from sweeps.study_folder import ended_already


def rounds(folder: Path, confirm: ConfirmConfig) -> list[list[TrialSpec]]:
    """What is missing of the repeats of the study's finalists: a list for each repeat, which is a seed of its own."""
    finalists = load(folder).eligible[: confirm.k]
    planned = [[_again(folder, trial, repeat) for trial in finalists] for repeat in range(1, confirm.repeats + 1)]
    missing = [[spec for spec in specs if ended_already(spec) is None] for specs in planned]
    return [specs for specs in missing if specs]


def _again(folder: Path, trial: TrialRecord, repeat: int) -> TrialSpec:
    """The same configuration, to the letter: it is that of the trial's own record."""
    assert trial.number is not None
    name = f"confirm-{trial.number:04d}-{repeat}"
    return TrialSpec(name, "confirm", trial.config, str(folder / name), trial.number, repeat, trial.params)
