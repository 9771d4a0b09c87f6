"""The parent's side of a worker: starts the process, talks to it, and says what became of it."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from lora_core.errors import UserError
from sweeps.protocol import Channel, Fault, Fuse, Fused, Go, Message, Progress, Ready, Report, Setup

LOG_LINES = 200  # of the worker's output, kept when it dies


class WorkerDied(Exception):
    """The worker ended without a word, or with a bug of ours. The text is one line that says how; `output` is the
    end of what it wrote."""

    def __init__(self, how: str, output: str = "") -> None:
        super().__init__(how)
        self.output = output


class Worker:
    """A child process that trains. Use as a context manager: it is ended on the way out."""

    def __init__(self, setup: Setup, on_progress: Callable[[Progress], None] = lambda _: None) -> None:
        self.on_progress = on_progress
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed by __exit__)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sweeps.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.channel = Channel(self.process.stdout, self.process.stdin)
        self.setup = setup

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self.process.kill()
        self.process.communicate()
        self.log.close()

    def ready(self) -> Ready:
        """Waits until model and data are loaded. Raises UserError for bad input, WorkerDied otherwise."""
        self.send(self.setup)
        message = self._receive()
        assert isinstance(message, Ready)
        return message

    def send(self, message: Go | Fuse | Setup) -> None:
        try:
            self.channel.send(message)
        except BrokenPipeError:
            raise self._death() from None

    def report(self) -> Report:
        """Waits for the answer to a Go."""
        message = self._receive()
        assert isinstance(message, Report)
        return message

    def fuse(self, adapter: Path, config: dict, folder: Path) -> Fused:
        """Merges an adapter into the base model."""
        self.send(Fuse(str(adapter), config, str(folder)))
        message = self._receive()
        assert isinstance(message, Fused)
        return message

    def _receive(self) -> Message:
        while True:
            message = self.channel.receive()
            if message is None:
                raise self._death()
            if isinstance(message, Fault):
                raise UserError(message.message) if message.user else _bug(message.message)
            if not isinstance(message, Progress):
                return message
            self.on_progress(message)

    def _death(self) -> WorkerDied:
        code = self.process.wait()
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        # MLX on a CPU that has no more memory ends with SIGSEGV; the system's own way is SIGKILL.
        hint = " (often: out of memory)" if -code in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT) else ""
        self.log.seek(0)
        return WorkerDied(f"The training process ended with {how}{hint}.", "".join(self.log.readlines()[-LOG_LINES:]))


def _bug(text: str) -> WorkerDied:
    """`text` is a traceback; its last line says what happened."""
    return WorkerDied(f"The training process met a bug of ours: {text.strip().splitlines()[-1][:200]}", text)
