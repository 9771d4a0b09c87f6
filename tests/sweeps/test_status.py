"""How studies stand, by folders written here as a search writes them."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from lora_core.records import (
    CHECKPOINT,
    StudyRecord,
    TrialRecord,
    append_metrics,
    load_study,
    load_trial,
    save_study,
    save_trial,
)
from sweeps.cli import main
from sweeps.standing import standing
from sweeps.status import _as_table
from tests.reports.helpers import held

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def at(minutes: float) -> str:
    return (BEGAN + timedelta(minutes=minutes)).isoformat()


def write_study(root: Path, name: str = "my-study", state: str = "interrupted", created: str = at(0)) -> Path:
    folder = root / "outputs" / name
    folder.mkdir(parents=True)
    resume = f"lora-sweep search study={name}"
    save_study(folder, StudyRecord(name, state=state, created=created, n_trials=8, resume_command=resume))
    return folder


def write_trial(folder: Path, number: int, state: str, begin: float, end: float, loss: float | None = None,
                reason: str | None = None) -> None:  # fmt: skip
    name = f"trial-{number:04d}"
    ended = None if state == "running" else at(end)
    record = TrialRecord(
        name, "trial", state, number, reason=reason, params={"lora_parameters.rank": 8 * number, "seed": 0},
        metrics={} if loss is None else {"best_val_loss": loss}, step=0 if state == "running" else 100,
        planned_steps=100, started=at(begin), ended=ended,
    )  # fmt: skip
    (folder / name).mkdir()
    save_trial(folder / name, record)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two complete, one pruned, one failed, one that was running: 12 minutes, two trials at a time at first."""
    folder = write_study(tmp_path)
    write_trial(folder, 0, "complete", 0, 4, 2.5)
    write_trial(folder, 1, "complete", 0, 6, 1.25)
    write_trial(folder, 2, "pruned", 6, 8, 1.0, "beaten")
    write_trial(folder, 3, "failed", 8, 12, None, "diverged")
    write_trial(folder, 4, "running", 100, 100)
    append_metrics(folder / "trial-0004", {"step": 50, "val_loss": 3.0})
    return folder


def status(study: Path, *words: str) -> int:
    return main(["status", *words, "--output-dir", str(study.parent)])


def test_a_study_that_was_interrupted(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(study, "my-study") == 0
    assert capsys.readouterr().out.splitlines() == [
        "my-study  interrupted  4 of 8 trials ended (2 complete, 1 pruned, 1 failed)",
        "trial-0004  begun, to be run again from step 0; was at 50 of 100  rank 32  seed 0",
        "Failed: 1 × diverged",
        "Best 1.2500  trial-0001  rank 8  seed 0",
        "450 steps in 12 min",
        "No process is at work on it. To go on: lora-sweep search study=my-study",
    ]


def test_a_study_that_is_running(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held(study):
        assert status(study, "my-study") == 0
    printed = capsys.readouterr().out
    assert "my-study  running" in printed and "trial-0004  at step 50 of 100" in printed
    assert "To go on" not in printed


def test_time_left_goes_by_the_trials_that_ended(study: Path) -> None:
    found = standing(study)
    # 12 minutes for four trials and a half, and three and a half are left.
    assert found.seconds == 12 * 60
    assert found.seconds_left == pytest.approx(12 * 60 / 4.5 * 3.5)


def test_nothing_has_ended_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path, state="running")
    write_trial(folder, 0, "running", 0, 0)
    with held(folder):
        assert status(folder, "my-study") == 0
    assert "time left unknown" in capsys.readouterr().out


def test_killed_is_not_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path, state="running")
    assert status(folder, "my-study") == 0
    assert "my-study  interrupted  0 of 8 trials ended\n" in capsys.readouterr().out


def test_all_studies_newest_first(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newer = write_study(study.parents[1], "b", "complete", at(60))
    write_trial(newer, 0, "complete", 60, 64, 0.5)
    assert status(study) == 0
    assert capsys.readouterr().out.splitlines() == [
        "b         complete     1 of 8 trials ended (1 complete)  best 0.5000",
        "my-study  interrupted  4 of 8 trials ended (2 complete, 1 pruned, 1 failed)  best 1.2500",
    ]


@pytest.mark.parametrize(
    ("words", "said"), [(["my-stud"], "Did you mean my-study?"), (["--watch"], "--watch needs the name")]
)
def test_bad_input(words: list[str], said: str, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(study, *words) == 2
    assert said in capsys.readouterr().err


def test_no_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--output-dir", str(tmp_path)]) == 2
    assert "holds no studies" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_watch_goes_on_until_nobody_is_at_work(study: Path) -> None:
    program = [sys.executable, "-m", "sweeps", "status", "my-study", "--watch", "--output-dir", str(study.parent)]
    with held(study):
        watching = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
        assert watching.stdout is not None
        assert "my-study  running" in watching.stdout.readline()
        assert watching.poll() is None
    printed, _ = watching.communicate(timeout=30)
    assert watching.returncode == 0 and "my-study  interrupted" in printed


def test_in_a_terminal_watch_shows_the_table_of_the_search(study: Path) -> None:
    append_metrics(study / "trial-0004", {"step": 60, "val_loss": 2.0, "train_loss": 2.5})
    console = Console(width=70)
    with held(study), console.capture() as captured:
        console.print(_as_table(standing(study), console.width))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    assert lines[0].startswith("my-study  running") and lines[-3].endswith(" left")
    assert lines[-1].split() == ["trial-0004", "r32", "seed", "0", "60/100", "2.5000", "2.0000", "▁"]


def test_it_needs_no_heavy_library(study: Path) -> None:
    program = f"""
import sys
from sweeps.cli import main
main(["status", "my-study", "--output-dir", {str(study.parent)!r}])
print([name for name in ("mlx", "mlflow", "optuna", "pandas", "matplotlib", "hydra") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_breaks_a_constraint_is_not_the_best(study: Path) -> None:
    record = load_study(study)
    record.config = {"search": {"constraints": ["best_val_loss>=2"]}}
    save_study(study, record)
    assert standing(study).winner == load_trial(study / "trial-0000")


def test_a_trial_with_a_checkpoint_goes_on_from_it(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study / "trial-0004" / CHECKPOINT).write_text("{}")
    assert main(["status", study.name, "--output-dir", str(study.parent)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trial-0004")]
    assert line.startswith("trial-0004  begun, to go on from its checkpoint; was at 50 of 100")
