"""Which trials cannot go on from their whole state."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_core.errors import UserError
from lora_core.records import TrialRecord
from sweeps import resume
from sweeps.config import SweepConfig


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (TrialRecord("trial-0000", "trial", "failed", reason="diverged"), "trial-0000 has failed (diverged): there is"),
        (TrialRecord("base", "base", "complete"), "base has learned nothing: there is nothing to go on with."),
        (TrialRecord("trial-0001", "trial", "complete", adapter="there"), "resume_adapter_file=there"),
        (
            TrialRecord("trial-0002", "trial", "complete", metrics={"best_val_loss": 1.0}),
            "trial-0002 has not kept its adapter (tracking.keep): there is nothing",
        ),
    ],
)
def test_trials_that_left_no_state(
    record: TrialRecord, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = SimpleNamespace(folder=tmp_path, record=SimpleNamespace(kind="search"))
    monkeypatch.setattr(resume, "study_and_trial", lambda *_: (study, record.name))
    monkeypatch.setattr(resume, "record_of", lambda *_: record)
    with pytest.raises(UserError) as refused:
        resume.source_of(SweepConfig(resume=f"w/{record.name}"))
    assert said in str(refused.value) and "None" not in str(refused.value)


def test_two_starts_are_refused() -> None:
    with pytest.raises(UserError, match=r"resume=w/7 and resume_adapter_file=there are two starts"):
        resume.source_of(SweepConfig(resume="w/7", resume_adapter_file="there"))
