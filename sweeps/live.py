"""What a terminal shows: trials in training as a table, curves as characters, lines that fit."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.control import Control
from rich.live import Live
from rich.markup import escape
from rich.segment import ControlType, Segment
from rich.table import Table

from reports import wording
from sweeps.run_values import short_settings
from sweeps.work import Running

BARS = "▁▂▃▄▅▆▇█"
GAP = 2  # between two columns
SETTINGS = 12  # characters of a trial's settings; with less room they say nothing


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` of the finite values, a character each, from the lowest of them to the highest."""
    shown = [value for value in values if math.isfinite(value)][-width:]
    if not shown:
        return ""
    low, span = min(shown), max(shown) - min(shown)
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1)) if span else 0] for value in shown)


def in_lines(parts: Sequence[str], width: int) -> list[str]:
    """The parts, two spaces apart, in as few lines as a window has room for without breaking one of them."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(part)
    return lines


def table(trials: Sequence[Running], width: int) -> Table:
    """A row for each trial. Settings are cut where they do not fit; a narrow window has fewer columns."""
    curve = min(16, max(8, width // 8))
    rows = [_cells(trial, curve) for trial in trials]
    looks: dict[str, dict[str, Any]] = {
        "trial": {"style": "bold"}, "settings": {"overflow": "ellipsis", "ratio": 1}, "": {"width": curve}
    }  # fmt: skip
    shown = _columns(rows, width, curve)
    found = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim", expand="settings" in shown)
    for name in shown:
        found.add_column(name, no_wrap=True, **looks.get(name, {"justify": "right"}))
    for row in rows:
        found.add_row(*(row[name] for name in shown))
    return found


def _columns(rows: Sequence[dict[str, str]], width: int, curve: int) -> list[str]:
    """Those for which there is room, of settings for the beginning at least."""
    needed = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    needed |= {"settings": SETTINGS, "": curve}
    for name in ("settings", "train", ""):
        if sum(needed.values()) + GAP * (len(needed) - 1) > width:
            del needed[name]
    return list(needed)


def _cells(trial: Running, curve: int) -> dict[str, str]:
    last = trial.losses[-1] if trial.losses else None
    return {
        "trial": trial.spec.name,
        "settings": escape(short_settings(trial.spec)),
        "step": f"{int(trial.step)}/{trial.steps}",
        "train": wording.loss(trial.train_loss),
        "valid": wording.loss(last),
        "": sparkline(trial.losses[1:], curve),
    }


class OnScreen(RenderHook):
    """What a live display shows. A window that is made narrower breaks its lines, in most terminals, and then there are
    more to erase than rich has written and would erase by itself."""

    def __init__(self, console: Console, renderable: RenderableType = "") -> None:
        self.console, self.renderable = console, renderable
        self.widths: list[int] = []  # of the lines as they were written

    @contextmanager
    def live(self, **options: Any) -> Iterator[Live]:
        with Live(self, console=self.console, transient=True, **options) as shown:
            self.console.push_render_hook(self)
            try:
                yield shown
            finally:
                self.console.pop_render_hook()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Without spaces at the end of a line, which terminals break or drop as they like."""
        lines = [_stripped(line) for line in console.render_lines(self.renderable, options, pad=False)]
        self.widths = [Segment.get_line_length(line) for line in lines]
        yield from (segment for line in lines for segment in (*line, Segment.line()))

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        broken = sum(max(0, math.ceil(width / self.console.width) - 1) for width in self.widths)
        up = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
        return [Control(ControlType.CARRIAGE_RETURN, *up * broken), *renderables] if broken else renderables


def _stripped(line: list[Segment]) -> list[Segment]:
    while line and not line[-1].text.strip():
        line = line[:-1]
    return [*line[:-1], Segment(line[-1].text.rstrip(), line[-1].style)] if line else []
