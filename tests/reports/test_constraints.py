"""What a constraint means, and that a trial which breaks one cannot win."""

import math

import pytest

from lora_core.records import load_study, load_trial, save_study, save_trial
from reports import answer, curves, heatmap, sentences, tables
from reports.constraints import broken, parse
from reports.study import load
from reports.writer import build


@pytest.mark.parametrize(
    ("text", "kept", "broken"),
    [
        ("adapter_mb<=2", [1.0, 2.0], [2.5]),
        ("adapter_mb < 2", [1.9], [2.0, 3.0]),
        (" adapter_mb>=.5", [0.5, 1.0], [0.4]),
        ("adapter_mb>1e-1", [0.2], [0.1, 0.0]),
        ("adapter_mb>-1", [0.0], [-1.0, math.nan, math.inf]),
    ],
)
def test_bounds(text, kept, broken):
    found = parse(text)
    assert all(found.kept_by({"adapter_mb": number}) for number in kept)
    assert not any(found.kept_by({"adapter_mb": number}) for number in broken)
    assert not found.kept_by({})


def test_val_loss_is_the_objective():
    assert parse("val_loss<2").kept_by({"best_val_loss": 1.0, "final_val_loss": 3.0})


@pytest.fixture
def constrained(study_folder):
    """The winner, trial-0003, and trial-0005 have adapters that are too large."""
    for path in sorted(study_folder.glob("trial-*")):
        record = load_trial(path)
        record.metrics["adapter_mb"] = 3.5 if record.name in ("trial-0003", "trial-0005") else 1.0
        save_trial(path, record)
    return with_constraints(study_folder, ["adapter_mb<2"])


def with_constraints(folder, texts):
    record = load_study(folder)
    record.config = {"search": {"constraints": texts}}
    save_study(folder, record)
    return folder


def test_another_trial_wins(constrained):
    found = answer.compute(load(constrained))
    assert (found.winner.name, found.winner.loss) == ("trial-0008", 1.8125)
    assert [row.name for row in found.runners_up] == ["trial-0009", "trial-0001", "trial-0007"]
    assert found.reasons["complete, but breaks adapter_mb<2"] == 2


def test_the_leaderboard_marks_it(constrained):
    rows = {row.name: row for row in tables.leaderboard(load(constrained))}
    assert list(rows)[2:4] == ["trial-0008", "trial-0009"] and list(rows)[8:10] == ["trial-0003", "trial-0005"]
    assert (rows["trial-0003"].rank, rows["trial-0008"].rank) == (None, 1)
    assert rows["trial-0003"].standing == "complete, breaks adapter_mb<2 (3.5)"
    assert rows["trial-0008"].standing == rows["default"].standing == "complete"
    assert rows["trial-0002"].standing == "pruned"


def test_a_large_number_that_breaks_one_is_written_out(constrained):
    record = load_trial(constrained / "trial-0003")
    record.metrics |= {"trainable_params": 32_768, "adapter_mb": 3.14159}
    told = broken(record, [parse("trainable_params<=10"), parse("adapter_mb<3")])
    assert told == "breaks trainable_params<=10 (32,768), adapter_mb<3 (3.142)"


def test_nothing_else_takes_it_for_the_best(constrained):
    study = load(constrained)
    assert min(loss for _, loss in curves.history(study).best) == 1.8125
    cells = [cell for row in heatmap.compute(study, heatmap.RATIO).cells for cell in row if cell.winner]
    assert len(cells) == 1


def test_it_is_in_the_report(constrained):
    build(constrained)
    for name in ("report.html", "report.md"):
        assert "breaks adapter_mb" in (constrained / "report" / name).read_text()


def test_no_trial_meets_them(study_folder):
    found = answer.compute(load(with_constraints(study_folder, ["peak_memory_gb<=1"])))
    assert found.winner is None
    told = sentences.body(found)[0]
    assert told.startswith("No completed trial meets the constraints") and "8 complete, but breaks peak_mem" in told
