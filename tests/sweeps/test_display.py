"""The live table in a terminal, and the lines of a log."""

import io
import re

import pytest
from rich.console import Console
from rich.text import Text

from lora_core.config import TrainConfig
from lora_core.records import TrialRecord
from lora_core.trial import TrialSpec
from sweeps import interrupts
from sweeps.display import Display, _line
from sweeps.protocol import Progress
from sweeps.run_values import short_settings

CONTROL = re.compile(r"\x1b\[[?\d;]*[A-Za-z]")
PARAMS = {"optimizer.learning_rate": 0.0008839874534247041, "lora_parameters.rank": 8, "lora_parameters.keys": "[mlp]"}


def spec(number: int, role: str = "trial", repeat: int = 0) -> TrialSpec:
    config = TrainConfig().to_dict() | {"trainer": TrainConfig().to_dict()["trainer"] | {"iters": 100}}
    name = f"{role}-{number:04d}" + (f"-{repeat}" if repeat else "")
    return TrialSpec(name, role, config, "", number, repeat, PARAMS)


def ended(number: int, value: float = 2.0, state: str = "complete", **more: object) -> TrialRecord:
    metrics = {"best_val_loss": value}
    return TrialRecord(f"trial-{number:04d}", "trial", state, number, params=PARAMS, metrics=metrics, **more)  # type: ignore[arg-type]


def display(width: int, height: int = 24, terminal: bool = True, total: int = 12, quiet: bool = False) -> Display:
    made = Display(total, quiet=quiet)
    made.console = Console(
        file=io.StringIO(), force_terminal=terminal, width=width, height=height, soft_wrap=True, highlight=False,
        _environ={"TERM": "xterm"},
    )  # fmt: skip
    return made


def written(made: Display) -> str:
    file = made.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def picture(made: Display) -> list[str]:
    """The lines of the live table as it is now."""
    with made.console.capture() as captured:
        made.console.print(made)
    return [line.rstrip() for line in CONTROL.sub("", captured.get()).splitlines()]


def some_trials(made: Display) -> None:
    with made:
        made.started(spec(0))
        made.progress(Progress(30, 3000, 0.5))
        made.ended(ended(0))
        made.ended(ended(1, 3.0, "pruned", step=30))
        made.ended(ended(2, 3.0, "failed", reason="diverged [x]"))


def test_a_log_has_plain_lines() -> None:
    made = display(80, terminal=False)
    some_trials(made)
    assert "\x1b" not in written(made) and "\r" not in written(made)
    assert [line.rstrip() for line in written(made).splitlines()] == [
        "trial-0000    2.0000 ★ lr 0.000884 r8 keys [mlp]",
        "trial-0001    3.0000   lr 0.000884 r8 keys [mlp]  pruned at step 30",
        "trial-0002    3.0000   lr 0.000884 r8 keys [mlp]  failed: diverged [x]",
    ]


def test_a_log_tells_of_the_whole_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    monkeypatch.setattr("sweeps.display.time.monotonic", lambda: seconds[0])
    made = display(80, terminal=False, total=2)
    with made:
        made.started(spec(0))
        for _ in range(100):  # a step each 30 seconds: a minute is two of them, a tenth of the search twenty
            seconds[0] += 30
            made.progress(Progress(1, 3000, 30))
        made.ended(ended(0))
    *told, trial = written(made).splitlines()
    assert told[0].startswith("0/2 trials  100 tokens/s  ") and told[0].endswith(" min left")
    assert len(told) == 4 and trial.startswith("trial-0000")


def test_a_search_of_seconds_has_no_such_line() -> None:
    made = display(80, terminal=False, total=2)
    with made:
        made.started(spec(0))
        for _ in range(100):
            made.progress(Progress(1, 2000, 20))
    assert written(made) == ""


def test_quiet() -> None:
    made = display(80, quiet=True)
    some_trials(made)
    with made.doing("Waiting"):
        made.say("no")
    made.answer("yes")
    assert written(made) == "yes\n"


def test_an_address_stays_whole_in_a_narrow_window() -> None:
    made = display(40)
    text = "MLflow  http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART"
    made.answer(text)
    assert written(made) == f"{text}\n"


def test_a_row_for_each_trial_in_training() -> None:
    made = display(80)
    made.ended(ended(0, 1.5))
    made.ended(ended(1, 3.0, "pruned"))
    for number in (2, 3):
        made.started(spec(number))
    made.progress(Progress(60, 3000, 0.5))
    for step, loss in ((0, 5.0), (10, 4.0), (20, 3.0), (30, 2.0)):
        made.evaluated("trial-0002", {"step": step, "val_loss": loss, **({"train_loss": loss + 1} if step else {})})
    assert picture(made) == [
        "trial       settings                            step   train   valid",
        "trial-0002  lr 0.000884 r8 keys [mlp]         30/100  3.0000  2.0000  █▅▁",
        "trial-0003  lr 0.000884 r8 keys [mlp]         30/100       –       –",
        "2/12 trials  1 pruned  best 1.5000 trial-0000  6,000 tokens/s  time left ?",
    ]


@pytest.mark.parametrize(
    ("width", "header", "row"),
    [
        (57, "trial         step   train   valid", "trial-0002  30/100  3.0000  2.0000  █▅▁"),
        (40, "trial         step   valid", "trial-0002  30/100  2.0000  █▅▁"),
        (30, "trial         step   valid", "trial-0002  30/100  2.0000"),
    ],
)
def test_a_narrow_window_has_fewer_columns(width: int, header: str, row: str) -> None:
    made = display(width)
    made.started(spec(2))
    for step, loss in ((0, 5.0), (10, 4.0), (20, 3.0), (30, 2.0)):
        made.evaluated("trial-0002", {"step": step, "val_loss": loss, "train_loss": loss + 1})
    assert picture(made)[:2] == [header, row]


def test_no_line_is_wider_than_a_narrow_window() -> None:
    made = display(60)
    some_trials(made)
    lines = [line.rpartition("\r")[2] for line in CONTROL.sub("", written(made)).split("\n")]
    assert any(
        line.startswith("trial-0001    3.0000   lr 0.000884 r8") and "…  pruned at step " in line for line in lines
    )
    made.started(spec(3))
    lines += picture(made)
    assert all(len(line) <= 60 for line in lines)
    assert lines[-2:] == ["3/12 trials  1 pruned  1 failed  best 2.0000 trial-0000", lines[-1]]


@pytest.mark.parametrize(("height", "shown"), [(24, 13), (60, 32), (6, 1)])
def test_as_many_rows_as_the_window_has_room_for(height: int, shown: int) -> None:
    made = display(100, height, total=64)
    for number in range(32):
        made.started(spec(number))
    lines = picture(made)
    assert sum(line.startswith("trial-") for line in lines) == shown
    assert (f"… and {32 - shown} more" in lines) == (shown < 32)
    assert len(lines) <= height


def test_it_says_that_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    made = display(80)
    before = picture(made)
    monkeypatch.setattr(interrupts, "stopping", lambda: "finishing")
    assert picture(made) == [*before, "finishing"]


def test_trials_left_by_a_training_process_that_died_are_not_in_training() -> None:
    made = display(80)
    made.started(spec(0))
    made.halted()
    assert len(picture(made)) == 1


def test_paths_and_commands_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(1)
    display.say("x" * 500)
    assert capsys.readouterr().out == "x" * 500 + "\n"


def test_failures_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Display(1).fail("no [good]")
    assert capsys.readouterr().err == "lora-sweep: no [good]\n"


def test_repeats_are_counted_on_their_own() -> None:
    made = display(200, terminal=False, total=2)
    for number in range(2):
        made.known([ended(number)])
    made.confirming([[spec(0, "confirm", 1), spec(1, "confirm", 1)], [spec(0, "confirm", 2)]])
    assert written(made).splitlines()[-1] == (
        "Training again with other seeds, 3 times in all: trial-0000 and trial-0001"
    )
    made.started(spec(0, "confirm", 1))
    made.ended(TrialRecord("confirm-0000-1", "confirm", "complete", 0, 1, metrics={"best_val_loss": 1.0}))
    assert made.status()[:2] == ["1/3 repeats", "best 2.0000 trial-0000"]
    assert (made.done, made.work.left) == (2, 2)


def test_what_became_of_a_trial_is_never_cut() -> None:
    params = {"optimizer.learning_rate": 1e-3, "lora_parameters.rank": 8, "lora_parameters.dropout": 0.05}
    record = TrialRecord("trial-0001", "trial", "failed", 1, reason="diverged", params=params)
    whole = _line(record, False)
    assert short_settings(record) in whole and whole.endswith("failed: diverged")
    narrow = Text.from_markup(_line(record, False, "", 50)).plain
    assert len(narrow) == 50 and narrow.endswith("…  failed: diverged")


def test_a_window_made_narrower_is_cleared_of_what_it_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 40 columns each of the two longer lines of the table has become two, and the cursor is below all of them."""
    monkeypatch.setattr("sweeps.display.REFRESHES", 1e-3)  # nothing is written but by what follows
    made = display(80)
    made.started(spec(0))
    made.progress(Progress(30, 3000, 0.5))
    table = [len(line) for line in picture(made)]
    assert [40 < length < 80 for length in table] == [True, True, False]
    with made:
        made.say("now")
        ups = []
        for width in (80, 40, 40, 80):
            made.console.width = width
            made.say("now")
            ups.append(written(made).split("now")[-2].count("\x1b[1A"))
    assert ups == [2, 4, 2, 2]
