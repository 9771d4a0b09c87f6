"""Ctrl-C, SIGTERM and a second one, at moments that a test chooses."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sweeps import interrupts
from sweeps.cli import main
from sweeps.trial_run import TrialRun
from tests.sweeps.helpers import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[float]]:
    """Sends a signal while MLflow is being told of step 4; returns a list of the steps told to their end."""
    real = TrialRun.log

    def arm(number: int) -> list[float]:
        steps: list[float] = []

        def slow(self: TrialRun, row: dict[str, float]) -> None:
            if row["step"] == 4:
                os.kill(os.getpid(), number)
                time.sleep(0.3)
            real(self, row)
            steps.append(row["step"])

        monkeypatch.setattr(TrialRun, "log", slow)
        return steps

    return arm


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_search_finishes_what_it_is_telling(
    number: int, code: int, place: Place, told: Callable[[int], list[float]], capfd: pytest.CaptureFixture[str]
) -> None:
    steps = told(number)
    assert main(place.search_arguments("trainer.slots=1", "n_trials=50")) == code
    said = capfd.readouterr().err
    assert "Traceback" not in said and "Resume with: lora-sweep search" in said
    assert 4 in steps, "the call was broken off"  # what was evaluated before the signal came may be told after it
    assert place.record().state == "interrupted"


def test_a_single_run_finishes_what_it_is_telling(
    place: Place, told: Callable[[int], list[float]], capfd: pytest.CaptureFixture[str]
) -> None:
    steps = told(signal.SIGINT)
    assert main(["train", *place.arguments("study=one", "trainer.iters=800")]) == 130
    said = capfd.readouterr().err
    assert "Traceback" not in said and "go on with it: lora-sweep train" in said
    assert 4 in steps
    assert place.record("train/one").state == "interrupted"


@pytest.fixture
def signalled() -> Iterator[list[int]]:
    """Handlers that note what comes through once ours are gone."""
    seen: list[int] = []
    before = {number: signal.signal(number, lambda n, _: seen.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


def test_waiting_is_left_at_once_and_work_is_not(signalled: list[int]) -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), interrupts.handled():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("work")
        with interrupts.waiting():
            reached.append("waited")
    with pytest.raises(KeyboardInterrupt), interrupts.handled(), interrupts.waiting():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        reached.append("waited")
    os.kill(os.getpid(), signal.SIGINT)
    assert (reached, signalled) == (["work"], [signal.SIGINT])


def test_a_signal_with_nothing_to_wait_for_is_not_lost(signalled: list[int]) -> None:
    with pytest.raises(KeyboardInterrupt), interrupts.handled():
        os.kill(os.getpid(), signal.SIGINT)


def test_what_is_ignored_stays_ignored(signalled: list[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts.handled(), interrupts.waiting():
        os.kill(os.getpid(), signal.SIGINT)


TWICE = """
import os, signal, subprocess, sys, time
from sweeps import interrupts
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
interrupts.end_on_leaving(child)
with interrupts.handled():
    interrupts.say_on_leaving("Resume with: this")
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(600)
"""


def test_the_second_one_leaves_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert "left at once. Resume with: this" in done.stderr and "Traceback" not in done.stderr
    state = subprocess.run(["ps", "-o", "stat=", "-p", done.stdout.strip()], capture_output=True, text=True).stdout
    assert not state.strip() or state.startswith("Z")


def test_a_live_display_says_it_itself(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), interrupts.handled(), interrupts.on_screen():
        assert not interrupts.stopping()
        os.kill(os.getpid(), signal.SIGINT)
        assert "Once more to leave at once" in interrupts.stopping()
    assert capfd.readouterr().err == "" and not interrupts.stopping()
