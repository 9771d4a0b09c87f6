"""The parent's side of a worker: starts the process, talks to it, and says what became of it."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from lora_core.errors import UserError
from lora_core.measured import Probe
from sweeps import interrupts, protocol
from sweeps.protocol import (
    Ask,
    Channel,
    Fault,
    Fuse,
    Fused,
    Go,
    Measure,
    Message,
    Progress,
    Ready,
    Report,
    Setup,
)

PARTING_SECONDS = 30  # for a worker to save its trials, and to end the step that it is at
LOG_LINES = 200  # of the worker's output, kept when it dies
# MLX on a CPU that has no more memory ends with SIGSEGV, on Metal it may abort; the system's own way is SIGKILL.
MEMORY_SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)


class WorkerDied(Exception):
    """The worker ended without a word, or with a bug of ours. The text is one line that says how; `output` is the
    end of what it wrote."""

    def __init__(self, how: str, output: str = "") -> None:
        super().__init__(how)
        self.output = output


class Bug(WorkerDied):
    """Its last words were a traceback: trying again would not help."""


class DiskFull(WorkerDied):
    """It had no room for its files; nor would the next one."""


class OutOfMemory(WorkerDied):
    """It is dead, and most likely for want of memory. `told`: it had the time to say so, so there is no doubt."""

    def __init__(self, how: str, output: str = "", told: bool = False) -> None:
        super().__init__(how, output)
        self.told = told


class Child:
    """A child process that holds a model. Use as a context manager: it is ended on the way out."""

    title: str  # what messages about its end call it
    parting_seconds: float = 0  # it may go on for, once this process is interrupted

    def __init__(
        self,
        on_progress: Callable[[Progress], None] = lambda _: None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.on_progress = on_progress
        self.environment = environment  # beside what this process has in its own
        self.between: Callable[[], None] = lambda: None  # called after each message
        self._start()

    def _start(self) -> None:
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed by _end)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sweeps.worker"],
            env=os.environ | self.environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.channel = Channel(self.process.stdout, self.process.stdin)
        interrupts.end_on_leaving(self.process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        parting = kind is not None and issubclass(kind, KeyboardInterrupt)
        self._end(None if kind is None else self.parting_seconds if parting else 0)

    def _end(self, patience: float | None) -> None:
        """Ends it once it has had so many seconds; None: as many as it wants."""
        assert self.process.stdin is not None and self.process.stdout is not None
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def send(self, message: Go | Fuse | protocol.Score | protocol.Sample | Setup | Measure | Ask) -> None:
        try:
            self.channel.send(message)
        except BrokenPipeError:
            raise self._death() from None

    def _receive(self) -> Message:
        while True:
            with interrupts.waiting():
                message = self.channel.receive()
            if message is None:
                raise self._death()
            if isinstance(message, Fault):
                self.process.kill()  # after its last words; short of memory, it may hang on its way out
                raise _error(self.title, message)
            if isinstance(message, Progress):
                self.on_progress(message)
            self.between()
            if not isinstance(message, Progress):
                return message

    def _death(self) -> WorkerDied:
        code = self.process.wait()
        self.log.seek(0)
        output = "".join(self.log.readlines()[-LOG_LINES:])
        if -code in MEMORY_SIGNALS:
            how = f"{signal.Signals(-code).name} (often: out of memory)"
            return OutOfMemory(f"{self.title} ended with {how}.", output)
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return WorkerDied(f"{self.title} ended with {how}.", output)


class Worker(Child):
    """It trains."""

    title = "The training process"
    parting_seconds = PARTING_SECONDS  # it saves its trials as soon as it has nobody to speak to

    def __init__(
        self,
        setup: Setup,
        on_progress: Callable[[Progress], None] = lambda _: None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.setup = setup
        super().__init__(on_progress, environment)

    def restart(self, slots: int) -> None:
        """Another process with that many slots, in place of one that is dead, or hangs after its last words."""
        self._end(0)
        self.setup = replace(self.setup, slots=slots)
        self._start()

    def ready(self) -> Ready:
        """Waits until model and data are loaded. Raises UserError for bad input, WorkerDied otherwise."""
        self.send(self.setup)
        message = self._receive()
        assert isinstance(message, Ready)
        return message

    def measure(self, samples: list[dict[str, Any]], choose: bool) -> Probe:
        """Has these configurations measured, see `Measure`."""
        self.send(Measure(samples, choose))
        message = self._receive()
        assert isinstance(message, Probe)
        self.setup = replace(self.setup, joins=message.joins)  # for the next process, where this one dies
        return message

    def report(self) -> Report:
        """Waits for the answer to a Go."""
        message = self._receive()
        assert isinstance(message, Report)
        return message

    def fuse(self, adapter: Path, config: dict, folder: Path, quantization: str | None) -> Fused:
        """Merges an adapter into the base model, and puts that in fewer bits if so said."""
        self.send(Fuse(str(adapter), config, str(folder), quantization))
        message = self._receive()
        assert isinstance(message, Fused)
        return message

    def score(self, adapter: str | None, config: dict[str, Any]) -> protocol.Scored:
        """Scores the test set with an adapter, or without any."""
        self.send(protocol.Score(adapter, config))
        message = self._receive()
        assert isinstance(message, protocol.Scored)
        return message

    def sample(self, adapter: str | None, config: dict[str, Any], rows: int) -> protocol.Sampled:
        """Has so many samples of the data answered with an adapter, or without any."""
        self.send(protocol.Sample(adapter, config, rows))
        message = self._receive()
        assert isinstance(message, protocol.Sampled)
        return message


def _error(title: str, fault: Fault) -> UserError | WorkerDied:
    """What a worker said before it ended. The last line of a traceback says what happened."""
    if fault.kind == "user":
        return UserError(fault.message)
    if fault.kind == "disk":
        return DiskFull(f"{title} found {fault.message}.")
    what = fault.message.strip().splitlines()[-1][:200]
    if fault.kind == "memory":
        return OutOfMemory(f"{title} ran out of memory: {what}", fault.message, told=True)
    if fault.kind == "device":
        return WorkerDied(f"{title} ended with a failure of the device: {what}", fault.message)
    return Bug(f"{title} met a bug of ours: {what}", fault.message)
