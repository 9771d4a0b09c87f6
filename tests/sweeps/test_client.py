"""What the parent makes of a worker's end; the worker is a few lines of Python."""

import subprocess
import sys
from typing import Any

import pytest

from lora_core.errors import UserError
from sweeps.client import Worker, WorkerDied
from sweeps.protocol import Progress, Setup

FAULT = 'print(\'{{"type": "Fault", "user": {}, "message": "a\\\\nKeyError: b"}}\')'


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
    with worker_that(FAULT.format("true")) as worker, pytest.raises(UserError, match="KeyError: b"):
        worker.ready()


def test_a_bug_is_ours(worker_that: Any) -> None:
    with worker_that(FAULT.format("false")) as worker, pytest.raises(WorkerDied) as death:
        worker.ready()
    assert str(death.value) == "The training process met a bug of ours: KeyError: b"
    assert death.value.output == "a\nKeyError: b"


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
