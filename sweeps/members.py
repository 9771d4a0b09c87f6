"""`cluster.workers`: other processes of this machine that join the study of this one."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from sweeps import interrupts

PATIENCE = 120.0  # seconds for one to end, once nothing is left to train or all were interrupted


@contextmanager
def members(argv: list[str], study: str, shares: list[dict[str, str]], say: Callable[[str], None]) -> Iterator[None]:
    """One process for each of `shares`, which is what its environment has for itself. They end when nothing is left to
    train; an exception in the block ends them as Ctrl-C would. Of their trials this process tells, of their failures
    `say`."""
    logs = [tempfile.TemporaryFile("w+", errors="replace") for _ in shares]  # noqa: SIM115 (closed below)
    started = [_start([*argv, f"study={study}"], share, log) for share, log in zip(shares, logs, strict=True)]
    try:
        yield
    except BaseException:
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
        raise
    finally:
        for process, log in zip(started, logs, strict=True):
            if _exit_code(process) not in (0, 128 + signal.SIGINT):
                log.seek(0)
                last = next(reversed(log.read().splitlines()), f"exit code {process.returncode}")
                say(f"A worker ended early, and the others took its trials: {last}")
            log.close()


def _start(argv: list[str], share: dict[str, str], log: IO[str]) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-m", "sweeps.member", *argv],
        env=os.environ | share, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log,
        start_new_session=True,  # the terminal's Ctrl-C is for this process, which passes it on
    )  # fmt: skip
    interrupts.end_on_leaving(process)
    return process


def _exit_code(process: subprocess.Popen) -> int:
    """Waits for its end. What it has trained is told by now, so one that hangs need not be waited for."""
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
