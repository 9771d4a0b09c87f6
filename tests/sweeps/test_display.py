"""The live line in a terminal, and the lines of a log."""

import io
import re

import pytest
from rich.console import Console

from lora_core.config import TrainConfig
from lora_core.records import TrialRecord
from lora_core.trial import TrialSpec
from sweeps.display import Display, Work
from sweeps.protocol import Progress


def spec(number: int, **trainer: float | None) -> TrialSpec:
    config = TrainConfig().to_dict()
    config["trainer"].update(trainer)
    return TrialSpec(f"trial-{number:04d}", "trial", config, "", number)


def ended(number: int, value: float = 2.0, state: str = "complete", **more: object) -> TrialRecord:
    params = {"optimizer.learning_rate": 0.0008839874534247041, "lora_parameters.rank": 8}
    metrics = {"best_val_loss": value}
    return TrialRecord(f"trial-{number:04d}", "trial", state, number, params=params, metrics=metrics, **more)  # type: ignore[arg-type]


def shown(width: int, terminal: bool) -> str:
    display = Display(12)
    display.console = Console(file=io.StringIO(), force_terminal=terminal, width=width, soft_wrap=True, highlight=False)
    display.bar.live.console = display.console
    display.bar.disable = not terminal
    with display:
        display.started(spec(0))
        display.progress(Progress(30, 3000, 0.5))
        display.ended(ended(0))
        display.ended(ended(1, 3.0, "pruned", step=30))
        display.ended(ended(2, 3.0, "failed", reason="diverged [x]"))
    file = display.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_log_has_plain_lines() -> None:
    text = shown(80, terminal=False)
    assert "\x1b" not in text and "\r" not in text
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines == [
        "trial-0000    2.0000 ★ lr 0.000884 r8",
        "trial-0001    3.0000   lr 0.000884 r8  pruned at step 30",
        "trial-0002    3.0000   lr 0.000884 r8  failed: diverged [x]",
    ]


def test_a_narrow_terminal() -> None:
    plain = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", shown(40, terminal=True))
    assert "trial-0000    2.0000 ★ lr 0.000884 r8\n" in plain
    assert "trial-0001    3.0000   lr 0.000884 r8  …\n" in plain
    assert all(len(line.rpartition("\r")[2]) <= 41 for line in plain.split("\n"))


def test_paths_and_commands_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(1)
    display.say("x" * 500)
    assert capsys.readouterr().out == "x" * 500 + "\n"


def test_failures_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Display(1).fail("no [good]")
    assert capsys.readouterr().err == "lora-sweep: no [good]\n"


def test_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("sweeps.display.time.monotonic", lambda: clock[0])
    work = Work(10)
    work.begin(10)
    assert work.text() == "time left ?"
    work.started(spec(0, iters=100))
    clock[0] += 30
    work.took(50)
    assert work.text() == "9:30 left"  # half a trial in 30 seconds, 9.5 to go
    work.ended(ended(0))
    assert work.text() == "4:30 left"


def test_time_left_with_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.display.time.monotonic", lambda: 0.0)
    work = Work(1)
    work.batches = 50
    work.started(spec(0, iters=None, epochs=1.5))
    assert work.planned == {"trial-0000": 75}
    work.reached("trial-0000", 30)
    assert work.running() == pytest.approx(0.4)


def test_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("sweeps.display.time.monotonic", lambda: clock[0])
    work = Work(3)
    work.begin(3)
    work.started(spec(0))
    clock[0] = 3723.0
    work.ended(ended(0))
    assert work.text() == "2:04:06 left"


def test_repeats_are_counted_on_their_own() -> None:
    display = Display(2)
    display.console = Console(file=io.StringIO(), width=200)
    display.done = 2
    display.confirming([[repeat(0), repeat(1)], [repeat(0, 2)]])
    file = display.console.file
    assert isinstance(file, io.StringIO)
    assert file.getvalue() == "Training again with other seeds, 3 times in all: trial-0000 and trial-0001\n"
    display.started(repeat(0))
    display.ended(TrialRecord("confirm-0000-1", "confirm", "complete", 0, 1, metrics={"best_val_loss": 1.0}))
    task = display.bar.tasks[0]
    assert task.description.startswith("1/3 repeats  best –") and (task.completed, task.total) == (1, 3)
    assert (display.done, display.work.left) == (2, 2)


def repeat(number: int, repeat: int = 1) -> TrialSpec:
    again = spec(number)
    return TrialSpec(f"confirm-{number:04d}-{repeat}", "confirm", again.config, "", number, repeat)
