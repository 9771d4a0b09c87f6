"""Ctrl-C and SIGTERM. The first one waits until what is being written or told is whole; the second one does not.

Python would raise KeyboardInterrupt wherever the program happens to be, which may be halfway through a transaction
of Optuna's or MLflow's. Here it is raised only where the parent waits for its worker, which is most of the time.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h\n"  # a live display hides it, and leaves it at the end of a line
_SOON = "finishing what is being written. Once more to leave at once."


class _State:
    """Signals come to a process, so there is one of these."""

    asked: int | None = None  # the number of the first signal
    waiting = False
    on_screen = False  # a live display says that the end is near
    parting = ""  # what to say on leaving at once
    children: list[subprocess.Popen] = []  # noqa: RUF012 (one state, see above)


@contextmanager
def handled() -> Iterator[None]:
    """A block in which a signal becomes KeyboardInterrupt(number), in `waiting()` or at the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    # One that is ignored, as SIGINT is in a shell script's background, stays so.
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    _State.asked, _State.parting = None, ""
    for number in before:
        signal.signal(number, _note)
    try:
        yield
        _raise_if_asked()
    finally:
        _State.asked = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def waiting() -> Iterator[None]:
    """A block that nothing is lost by leaving, entered with nothing half-done."""
    _State.waiting = True  # first, so that a signal before the next line is noticed by one or the other
    try:
        _raise_if_asked()
        yield
    except KeyboardInterrupt:
        _raise_if_asked()  # Ray makes another one of it, without the number
        raise
    finally:
        _State.waiting = False


@contextmanager
def on_screen() -> Iterator[None]:
    """A block in which a live display shows `stopping`; a line of ours it would draw over."""
    _State.on_screen = True
    try:
        yield
    finally:
        _State.on_screen = False


def stopping() -> str:
    """What is to be seen from the first signal on; empty before."""
    return "" if _State.asked is None else _SOON


def say_on_leaving(text: str) -> None:
    """What a second signal leaves on the terminal: how to go on."""
    _State.parting = text


def end_on_leaving(child: subprocess.Popen) -> None:
    """A second signal ends this process too."""
    _State.children = [process for process in _State.children if process.poll() is None] + [child]


def _raise_if_asked() -> None:
    if _State.asked is not None:
        raise KeyboardInterrupt(_State.asked)


def _note(number: int, _: FrameType | None) -> None:
    if _State.asked is not None:
        _leave(number)
    _State.asked = number
    if _State.waiting:
        raise KeyboardInterrupt(number)
    if not _State.on_screen:
        _write(f"lora-sweep: {_SOON}")


def _leave(number: int) -> None:
    """Nothing is tidied up: what lies on disk is enough to go on from."""
    for child in _State.children:
        if child.returncode is None:
            with suppress(OSError):
                os.kill(child.pid, signal.SIGKILL)
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), _SHOW_CURSOR)
    _write(f"lora-sweep: left at once. {_State.parting}".rstrip())
    os._exit(128 + number)


def _write(line: str) -> None:
    """Past Python's own buffers, which whatever was interrupted may be in the middle of."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())
