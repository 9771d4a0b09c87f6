"""What a person sees while a search or a single run goes on: a live table in a terminal, plain lines in a log."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.text import Text

from lora_core.records import TrialRecord
from lora_core.trial import TrialSpec
from reports.constraints import Constraint, broken
from reports.wording import clock, listed, loss, plural
from sweeps import interrupts, protocol
from sweeps.live import OnScreen, in_lines, table
from sweeps.run_values import short_settings
from sweeps.work import Work

REFRESHES = 2  # a second
TABLES_SHARE = 2 / 3  # of the window's height; above are the lines of what has ended
LOG_SECONDS, LOG_SHARE = 60.0, 0.1  # in a log, at least this long and this much of all trials between two lines


class Display:
    """Use as a context manager while trials run; what it says can be said at any other time too. `quiet`: nothing but
    `answer` and `fail`."""

    def __init__(self, n_trials: int, constraints: Sequence[Constraint] = (), quiet: bool = False) -> None:
        self.constraints = list(constraints)
        # Lines are not wrapped: a path or a command must stay whole for copying.
        self.console = Console(highlight=False, soft_wrap=True)
        self.quiet = quiet
        self.n_trials = n_trials
        self.states: Counter[str] = Counter()  # of the trials that have ended
        self.repeats = self.repeated = 0  # trainings with other seeds: to come in all, and ended
        self.best: TrialRecord | None = None
        self.work = Work(n_trials)
        self._logged = (0.0, 0.0)  # when a log last had a line about the whole, and the share done by then
        self._shown = ExitStack()

    @property
    def is_live(self) -> bool:
        return self.console.is_terminal and not self.console.is_dumb_terminal and not self.quiet

    @property
    def done(self) -> int:
        return self.states.total()

    def __enter__(self) -> Self:
        self._begin(self.n_trials - self.done)
        if self.is_live:
            self._shown.enter_context(interrupts.on_screen())
            self._shown.enter_context(OnScreen(self.console, self).live(refresh_per_second=REFRESHES))
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.close()

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """The live table, as large as the window is now."""
        trials = list(self.work.running.values())
        lines = [*in_lines(self.status(), options.max_width), *filter(None, [interrupts.stopping()])]
        room = max(1, int(options.size.height * TABLES_SHARE) - len(lines) - 2)  # without its header, and "… more"
        if trials:
            yield table(trials[:room], options.max_width)
        if len(trials) > room:
            yield Text(f"… and {len(trials) - room} more", style="dim")
        yield from map(Text, lines)

    def answer(self, text: str) -> None:
        """What the command was run for."""
        self.console.print(text, markup=False)

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, markup=False)

    def fail(self, text: str) -> None:
        """Why there is nothing more to come."""
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"lora-sweep: {text}", markup=False)

    @contextmanager
    def doing(self, text: str) -> Iterator[None]:
        """Shows that something takes its time."""
        if not self.is_live:
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
            best = loss(self.best.value if self.best else None)
            self.say(f"{self.done}{of} trials have ended already{more}; best so far {best}")
        self.work.left = max(0, self.n_trials - self.done)

    def confirming(self, missing: list[list[TrialSpec]]) -> None:
        """Which trials are about to be trained again, by repeat."""
        count = sum(map(len, missing))
        if count:
            which = {spec.number: f"trial-{spec.number:04d}" for specs in missing for spec in specs}
            self.say(f"Training again with other seeds, {plural(count, 'time')} in all: {listed(list(which.values()))}")
        self.repeats, self.repeated = count, 0
        self._begin(count)

    def started(self, spec: TrialSpec) -> None:
        self.work.started(spec)

    def progress(self, message: protocol.Progress) -> None:
        self.work.took(message)
        now, share = time.monotonic(), self._share()
        since, done = self._logged
        if not self.is_live and now - since >= LOG_SECONDS and share - done >= LOG_SHARE:
            self.say("  ".join(self.status()))
            self._logged = now, share

    def evaluated(self, name: str, row: dict[str, float]) -> None:
        self.work.evaluated(name, row)

    def ended(self, record: TrialRecord) -> None:
        """A line for the trial."""
        self._count(record)
        self.work.ended(record)
        if self.quiet:
            return
        breaks = broken(record, self.constraints) if record.role == "trial" else ""
        if self.console.is_terminal:
            line = _line(record, record is self.best, breaks, self.console.width)
            self.console.print(line, soft_wrap=False, no_wrap=True, overflow="ellipsis", crop=True)
        else:
            self.console.print(_line(record, record is self.best, breaks))

    def halted(self) -> None:
        """The trials in training wait for another training process."""
        self.work.running.clear()

    def status(self) -> list[str]:
        """How far the whole is, in parts."""
        done, total, what = min(self.done, self.n_trials), self.n_trials, "trials"
        if self.repeats:
            done, total, what = self.repeated, self.repeats, "repeats"
        parts = [f"{done}/{total} {what}"] if total > 1 else []
        parts += [f"{self.states[state]} {state}" for state in ("pruned", "failed") if self.states[state]]
        parts += [f"best {loss(self.best.value)} {self.best.name}"] if self.best else []
        parts += [f"{self.work.speed:,.0f} tokens/s"] if self.work.speed else []
        left = self.work.seconds_left()
        return [*parts, "time left ?" if left is None else f"{clock(left)} left"]

    def _begin(self, trials: int) -> None:
        self.work.begin(trials)
        self._logged = time.monotonic(), self._share()

    def _share(self) -> float:
        """The done part of all there is to train."""
        done, total = (self.repeated, self.repeats) if self.repeats else (self.done, self.n_trials)
        return (done + self.work.under_way()) / max(1, total)

    def _count(self, record: TrialRecord) -> None:
        if record.role == "trial":
            self.states[record.state] += 1
        self.repeated += record.role == "confirm"
        if record.role != "trial" or record.state != "complete" or record.value is None:
            return
        lowest = self.best is None or self.best.value is None or record.value < self.best.value
        if lowest and not broken(record, self.constraints):
            self.best = record


def _line(record: TrialRecord, is_best: bool, breaks: str = "", width: int | None = None) -> str:
    """Settings are cut where the line is wider, what became of the trial is not."""
    value = "" if record.value is None else f"{record.value:.4f}"
    how = {"pruned": f"pruned at step {record.step}", "failed": f"failed: {record.reason}"}.get(record.state, breaks)
    name, reached = f"{record.name:<11}", f" {value:>8}{' ★' if is_best else '':<2} "
    settings = Text(short_settings(record))
    if width is not None:
        settings.truncate(max(0, width - len(name + reached) - len(how) - 2 * bool(how)), overflow="ellipsis")
    return f"[bold]{name}[/]{reached}{escape('  '.join(part for part in (settings.plain, how) if part))}"
