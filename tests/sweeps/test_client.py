"""What the parent makes of a worker's end; the worker is a few lines of Python."""

import subprocess
import sys
from typing import Any

import pytest

from lora_core.errors import UserError
from sweeps.client import Bug, OutOfMemory, Worker, WorkerDied
from sweeps.protocol import Progress, Setup

FAULT = 'print(\'{{"type": "Fault", "kind": "{}", "message": "a\\\\nKeyError: b"}}\')'


@pytest.fixture
def worker_that(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A worker that runs `code` instead of training."""
    real = subprocess.Popen

    def make(code: str, on_progress: Any = lambda _: None) -> Worker:
        monkeypatch.setattr(subprocess, "Popen", lambda argv, **given: real([sys.executable, "-c", code], **given))
        return Worker(Setup({}, 1), on_progress)

    return make


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL (often: out of memory)"),
        ("import os; os.kill(os.getpid(), 15)", "SIGTERM."),
        ("import sys; sys.exit(3)", "exit code 3"),
    ],
)
def test_deaths(code: str, how: str, worker_that: Any) -> None:
    speaks = f"import sys; print('last words', file=sys.stderr, flush=True); {code}"
    with worker_that(speaks) as worker, pytest.raises(WorkerDied) as death:
        worker.ready()
    assert how in str(death.value) and "\n" not in str(death.value)
    assert death.value.output == "last words\n"


def test_bad_input_is_the_users(worker_that: Any) -> None:
    with worker_that(FAULT.format("user")) as worker, pytest.raises(UserError, match="KeyError: b"):
        worker.ready()


def test_a_bug_is_ours(worker_that: Any) -> None:
    with worker_that(FAULT.format("bug")) as worker, pytest.raises(WorkerDied) as death:
        worker.ready()
    assert str(death.value) == "The training process met a bug of ours: KeyError: b"
    assert death.value.output == "a\nKeyError: b"


def test_a_failure_of_the_device_is_a_death_like_others(worker_that: Any) -> None:
    with worker_that(FAULT.format("device")) as worker, pytest.raises(WorkerDied) as death:
        worker.ready()
    assert str(death.value) == "The training process ended with a failure of the device: KeyError: b"
    assert not isinstance(death.value, Bug | OutOfMemory)


def test_out_of_memory_as_the_worker_tells_it(worker_that: Any) -> None:
    with worker_that(FAULT.format("memory")) as worker, pytest.raises(OutOfMemory) as death:
        worker.ready()
    assert str(death.value) == "The training process ran out of memory: KeyError: b"
    assert death.value.told


@pytest.mark.parametrize(("number", "likely"), [(9, True), (11, True), (6, True), (15, False), (1, False)])
def test_signals_that_mean_out_of_memory(number: int, likely: bool, worker_that: Any) -> None:
    with worker_that(f"import os; os.kill(os.getpid(), {number})") as worker, pytest.raises(WorkerDied) as death:
        worker.ready()
    assert isinstance(death.value, OutOfMemory) is likely
    assert not getattr(death.value, "told", False)


def test_a_worker_that_hangs_is_replaced(worker_that: Any) -> None:
    with worker_that(FAULT.format("memory") + "; import sys, time; sys.stdout.flush(); time.sleep(600)") as worker:
        with pytest.raises(OutOfMemory):
            worker.ready()
        first = worker.process
        worker.restart(slots=3)
        assert first.returncode is not None and worker.process is not first
        assert worker.setup.slots == 3
        with pytest.raises(OutOfMemory):
            worker.ready()
    assert worker.process.returncode == -9


def test_progress_is_passed_on(worker_that: Any) -> None:
    seen: list[Progress] = []
    lines = '{\\"type\\": \\"Progress\\", \\"steps\\": 1, \\"tokens\\": 2, \\"seconds\\": 0.5}'
    with worker_that(f'print("{lines}")', seen.append) as worker, pytest.raises(WorkerDied):
        worker.ready()
    assert seen == [Progress(1, 2, 0.5)]


def test_an_error_in_the_parent_ends_the_worker(worker_that: Any) -> None:
    with pytest.raises(ZeroDivisionError), worker_that("import time; time.sleep(600)") as worker:
        raise ZeroDivisionError
    assert worker.process.returncode is not None
