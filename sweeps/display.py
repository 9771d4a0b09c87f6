"""What a person sees while a search or a single run goes on: a live line in a terminal, plain lines in a log."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from lora_core.records import TrialRecord
from lora_core.trial import TrialSpec
from reports.constraints import Constraint, broken
from reports.wording import listed, plural
from sweeps import protocol
from sweeps.run_values import run_name


class Display:
    """Use as a context manager while trials run; `say`, `fail` and `doing` work at any other time too."""

    def __init__(self, n_trials: int, constraints: Sequence[Constraint] = ()) -> None:
        self.constraints = list(constraints)
        # Lines are not wrapped: a path or a command must stay whole for copying.
        self.console = Console(highlight=False, soft_wrap=True)
        self.n_trials = n_trials
        self.done = 0
        self.repeats = self.repeated = 0  # trainings with other seeds: to come in all, and ended
        self.best = math.inf
        self.speed = 0.0
        self.work = Work(n_trials)
        self.bar = Progress(
            SpinnerColumn(), BarColumn(16), TextColumn("{task.description}"),
            console=self.console, transient=True, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=n_trials)

    def __enter__(self) -> Self:
        self.work.begin(self.n_trials - self.done)
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def fail(self, text: str) -> None:
        """Why there is nothing more to come."""
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"lora-sweep: {text}", markup=False)

    @contextmanager
    def doing(self, text: str) -> Iterator[None]:
        """Shows that something takes its time."""
        if not self.console.is_terminal:
            self.say(f"{text} …")
            yield
            return
        with self.console.status(f"{text} …"):
            yield

    def start(self, ready: protocol.Ready, axes: list[str], notes: list[str]) -> None:
        """What is about to run, and on what."""
        model, rows = ready.model, ready.data.rows
        self.work.batches = ready.data.batches
        size = f"{model.parameters / 1e6:.3g}M"
        self.say(f"Model {model.folder} ({size} parameters, {model.depth} blocks)")
        counts = ", ".join(f"{count} {split}" for split, count in rows.items() if count)
        self.say(f"Data {ready.data.path} ({counts} rows)   Device {ready.environment['device']}")
        for note in notes:
            self.say(f"  {note}")
        for axis in axes:
            self.say(f"Axis {axis}")

    def known(self, records: list[TrialRecord]) -> None:
        """Trials that ended in an earlier run."""
        for record in records:
            self._count(record)
        if records:
            of = f" of {self.n_trials}" if self.done <= self.n_trials else ""
            more = "" if of else f", more than n_trials={self.n_trials}"
            self.say(f"{self.done}{of} trials have ended already{more}; best so far {_loss(self.best)}")
        self.work.left = max(0, self.n_trials - self.done)

    def confirming(self, missing: list[list[TrialSpec]]) -> None:
        """Which trials are about to be trained again, by repeat."""
        count = sum(map(len, missing))
        if count:
            which = {spec.number: f"trial-{spec.number:04d}" for specs in missing for spec in specs}
            self.say(f"Training again with other seeds, {plural(count, 'time')} in all: {listed(list(which.values()))}")
        self.repeats, self.repeated = count, 0
        self.work.begin(count)

    def started(self, spec: TrialSpec) -> None:
        self.work.started(spec)
        self._refresh()

    def progress(self, message: protocol.Progress) -> None:
        if message.steps and message.seconds > 0:
            now = message.tokens / message.seconds
            self.speed = now if self.speed == 0 else 0.7 * self.speed + 0.3 * now
            self.work.took(message.steps)
        self._refresh()

    def evaluated(self, name: str, row: dict[str, float]) -> None:
        self.work.reached(name, int(row["step"]))
        self._refresh()

    def ended(self, record: TrialRecord) -> None:
        """One line for the trial, and the bar moves on."""
        self._count(record)
        self.work.ended(record)
        line = _line(record, self.best, broken(record, self.constraints) if record.role == "trial" else "")
        if self.console.is_terminal:
            self.console.print(line, soft_wrap=False, no_wrap=True, overflow="ellipsis", crop=True)
        else:
            self.console.print(line)
        self._refresh()

    def _count(self, record: TrialRecord) -> None:
        if record.role == "trial":
            self.done += 1
        self.repeated += record.role == "confirm"
        kept = not broken(record, self.constraints)
        if record.role in ("trial", "train") and record.state == "complete" and record.value is not None and kept:
            self.best = min(self.best, record.value)

    def _refresh(self) -> None:
        done, total, what = min(self.done, self.n_trials), self.n_trials, "trials"
        if self.repeats:
            done, total, what = self.repeated, self.repeats, "repeats"
        parts = [
            f"{done}/{total} {what}", f"best {_loss(self.best)}", f"{self.speed:,.0f} tok/s", self.work.text(),
        ]  # fmt: skip
        self.bar.update(self.task, total=total, completed=done + self.work.running(), description="  ".join(parts))


class Work:
    """How much there is to do, in trials, and how long it will take at the pace so far."""

    def __init__(self, trials: int) -> None:
        self.left = trials  # searched trials that have not ended
        self.batches = 0  # of one epoch
        self.began: float | None = None
        self.finished = 0.0  # trials' worth of steps of those that ended since then
        self.planned: dict[str, int] = {}  # steps of running trials
        self.at: dict[str, float] = {}  # the step each has reached

    def begin(self, trials: int) -> None:
        self.began, self.left, self.finished = time.monotonic(), max(0, trials), 0.0

    def started(self, spec: TrialSpec) -> None:
        trainer = spec.config["trainer"]
        steps = trainer["iters"] or max(1, round(trainer["epochs"] * self.batches))
        if spec.role != "base":
            self.planned[spec.name], self.at[spec.name] = steps, 0

    def took(self, steps: int) -> None:
        """Steps since the last call, of all running trials alike; `reached` puts that right."""
        for name in self.at:
            self.at[name] = min(self.planned[name], self.at[name] + steps / len(self.at))

    def reached(self, name: str, step: int) -> None:
        if name in self.at:
            self.at[name] = step

    def ended(self, record: TrialRecord) -> None:
        if record.name in self.planned:
            # A trial that was stopped early counts whole: the pace then includes that some are.
            del self.planned[record.name], self.at[record.name]
            self.finished += 1
        if record.role in ("trial", "confirm"):
            self.left = max(0, self.left - 1)

    def running(self) -> float:
        """The done part of the trials under way."""
        return sum(self.at[name] / self.planned[name] for name in self.planned)

    def text(self) -> str:
        done = self.finished + self.running()
        if self.began is None or done <= 0:
            return "time left ?"
        # The default configuration is trained too, beside the trials.
        extra = 1 if "default" in self.planned else 0
        seconds = (time.monotonic() - self.began) / done * max(0.0, self.left + extra - self.running())
        hours, minutes = divmod(int(seconds) // 60, 60)
        clock = f"{hours}:{minutes:02d}:{int(seconds) % 60:02d}" if hours else f"{minutes}:{int(seconds) % 60:02d}"
        return f"{clock} left"


def _loss(value: float) -> str:
    return "–" if math.isinf(value) else f"{value:.4f}"


def _line(record: TrialRecord, best: float, breaks: str = "") -> str:
    value = "" if record.value is None else f"{record.value:.4f}"
    mark = " ★" if record.role == "trial" and record.value == best and not breaks else ""
    how = {"pruned": f"pruned at step {record.step}", "failed": f"failed: {record.reason}"}
    settings = run_name(record).removeprefix(record.name).strip()
    what = "  ".join(part for part in (settings, escape(how.get(record.state, breaks))) if part)
    return f"[bold]{record.name:<11}[/] {value:>8}{mark:<2} {what}"
