"""What a person sees while a search or a single run goes on: a live line in a terminal, plain lines in a log."""

import math
import time
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from lora_core.records import TrialRecord
from sweeps import protocol


class Display:
    """Use as a context manager while trials run; `say` works at any time."""

    def __init__(self, n_trials: int) -> None:
        # Lines are not wrapped: a path or a command must stay whole for copying.
        self.console = Console(highlight=False, soft_wrap=True)
        self.n_trials = n_trials
        self.done = 0
        self.best = math.inf
        self.speed = 0.0
        self.began: float | None = None
        self.done_at_start = 0
        self.steps: dict[str, int] = {}  # of running trials
        self.planned = 0
        self.bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[state]}"),
            console=self.console, transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task("trials", total=n_trials, state="")

    def __enter__(self) -> Self:
        self.began, self.done_at_start = time.monotonic(), self.done
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def start(self, ready: protocol.Ready, axes: list[str], notes: list[str]) -> None:
        """What is about to run, and on what."""
        model, rows = ready.model, ready.data.rows
        self.say(f"Model {model.folder} ({model.parameters / 1e6:.0f}M parameters, {model.depth} blocks)")
        counts = ", ".join(f"{count} {split}" for split, count in rows.items() if count)
        self.say(f"Data {ready.data.path} ({counts} rows)   Device {ready.environment['device']}")
        for note in notes:
            self.say(f"  {note}")
        for axis in axes:
            self.say(f"Axis {axis}")

    def started(self, name: str, planned: int) -> None:
        self.steps[name] = 0
        self.planned = max(self.planned, planned)
        self._refresh()

    def progress(self, message: protocol.Progress) -> None:
        if message.steps and message.seconds > 0:
            now = message.tokens / message.seconds
            self.speed = now if self.speed == 0 else 0.7 * self.speed + 0.3 * now
        self._refresh()

    def evaluated(self, name: str, row: dict[str, float]) -> None:
        self.steps[name] = int(row["step"])
        self._refresh()

    def ended(self, record: TrialRecord) -> None:
        """One line for the trial, and the bar moves on."""
        self.steps.pop(record.name, None)
        if record.role == "trial":
            self.done += 1
            if record.state == "complete" and record.value is not None:
                self.best = min(self.best, record.value)
        if self.began is not None:
            self.console.print(_line(record, self.best))
        self._refresh()

    def _refresh(self) -> None:
        best = "–" if math.isinf(self.best) else f"{self.best:.4f}"
        state = f"{self.done}/{self.n_trials}  best {best}  {self.speed:.0f} tok/s  {self._left()}"
        self.bar.update(self.task, completed=self.done, state=state)

    def _left(self) -> str:
        """Time left, from what trials took so far."""
        ended = self.done - self.done_at_start
        running = sum(self.steps.values()) / max(1, self.planned)
        if self.began is None or ended + running <= 0:
            return "time left unknown"
        left = (time.monotonic() - self.began) * max(0.0, self.n_trials - self.done - running) / (ended + running)
        return f"{int(left // 60)}:{int(left % 60):02d} left"


def _line(record: TrialRecord, best: float) -> str:
    value = "" if record.value is None else f"{record.value:.4f}"
    mark = " ★" if record.role == "trial" and record.value == best else ""
    how = record.state if record.reason is None else f"{record.state}: {record.reason}"
    settings = "  ".join(f"{key.split('.')[-1]}={_short(found)}" for key, found in record.params.items())
    return f"[bold]{record.name:<11}[/] {value:>8}{mark:<2} {escape(how)}  [dim]{escape(settings)}[/]"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
