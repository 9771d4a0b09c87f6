"""Files that are whole or not there, and metrics that survive a torn last line."""

import json
import math
import os
from pathlib import Path

import pytest

from lora_core.errors import UserError
from lora_core.records import (
    StudyRecord,
    TrialRecord,
    append_metrics,
    load_metrics,
    load_study,
    load_trial,
    load_trials,
    save_study,
    save_trial,
    write_json,
    write_metrics,
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    trial = TrialRecord("trial-0001", "trial", number=1, metrics={"best_val_loss": 1.5}, params={"seed": 3})
    save_trial(tmp_path, trial)
    assert load_trial(tmp_path) == trial and trial.value == 1.5
    study = StudyRecord("mine", space=["seed=1,2"])
    save_study(tmp_path, study)
    assert load_study(tmp_path) == study


def test_an_adapter_goes_where_its_trial_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    trial = TrialRecord("mine", "train", adapter=str(here / "adapters"))
    save_trial(here, trial)
    assert load_trial(here) == trial
    here.rename(there)
    assert load_trial(there).adapter == str(there / "adapters")
    monkeypatch.chdir(tmp_path)
    assert load_trial(Path("there")).adapter == str(there / "adapters")
    save_trial(there, TrialRecord("mine", "train", adapter="/elsewhere/adapters"))  # by adapter_path
    assert load_trial(there).adapter == "/elsewhere/adapters"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    file = tmp_path / "trial.json"
    write_json(file, {"old": 1})

    def refuse(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, failing, refuse)
    with pytest.raises(OSError, match="no space"):
        write_json(file, {"new": 2})
    assert file.read_text() == '{\n  "old": 1\n}\n'


def test_values_that_json_lacks_leave_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert "old" in (tmp_path / "a.json").read_text()


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    assert load_metrics(tmp_path) == []
    append_metrics(tmp_path, {"step": 0, "val_loss": 2.0})
    append_metrics(tmp_path, {"step": 5, "val_loss": 1.0})
    whole = load_metrics(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "val_l')
    assert load_metrics(tmp_path) == whole == [{"step": 0, "val_loss": 2.0}, {"step": 5, "val_loss": 1.0}]


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_what_is_no_number_is_null_in_the_file(tmp_path: Path, lost: float) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    append_metrics(tmp_path, {"step": 10, "val_loss": lost})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {"step": 10, "val_loss": None}
    (row,) = load_metrics(tmp_path)
    assert row["step"] == 10 and math.isnan(row["val_loss"])
    save_trial(tmp_path, TrialRecord("t", "trial", metrics={"best_val_loss": lost}, params={"a": [1, lost]}))
    written = json.loads((tmp_path / "trial.json").read_text(), parse_constant=refuse)
    assert written["metrics"] == {"best_val_loss": None} and written["params"] == {"a": [1, None]}
    assert load_trial(tmp_path).value is None


def test_trials_come_in_order(tmp_path: Path) -> None:
    for name, role, number in [("trial-0010", "trial", 10), ("trial-0002", "trial", 2), ("default", "default", None),
                               ("base", "base", None)]:  # fmt: skip
        (tmp_path / name).mkdir()
        save_trial(tmp_path / name, TrialRecord(name, role, number=number))
    assert [trial.name for trial in load_trials(tmp_path)] == ["base", "default", "trial-0002", "trial-0010"]


def test_keys_of_a_newer_version_are_ignored(tmp_path: Path) -> None:
    write_json(tmp_path / "trial.json", {"name": "t", "role": "trial", "added_later": 1})
    assert load_trial(tmp_path) == TrialRecord("t", "trial")


def test_missing_and_damaged_records_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trial\.json does not exist"):
        load_trial(tmp_path)
    (tmp_path / "trial.json").write_text('{"name":\n oops}')
    with pytest.raises(UserError, match=r"trial\.json:2: not valid JSON"):
        load_trial(tmp_path)


def test_rows_that_are_replaced_are_written_as_any_others(tmp_path: Path) -> None:
    rows = [{"step": 0, "val_loss": 1.5}, {"step": 4, "val_loss": math.nan}]
    for row in rows:
        append_metrics(tmp_path, row)
    appended = (tmp_path / "metrics.jsonl").read_text()
    write_metrics(tmp_path, load_metrics(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_text() == appended and "null" in appended


def test_rows_of_two_writers_count_once(tmp_path: Path) -> None:
    for step in (0, 4, 8, 4, 12):
        append_metrics(tmp_path, {"step": step, "val_loss": 1.0 / (1 + step)})
    assert [row["step"] for row in load_metrics(tmp_path)] == [0, 4, 8, 12]
