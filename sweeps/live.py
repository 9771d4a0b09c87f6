"""What a terminal shows: trials in training as a table, curves as characters, lines and addresses that fit."""

import math
import re
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from reports import wording
from sweeps.run_values import short_settings
from sweeps.work import Running

BARS = "▁▂▃▄▅▆▇█"


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
    """A row for each trial: settings are cut where they do not fit, the rest is not."""
    found = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", expand=True)
    found.add_column("trial", no_wrap=True, style="bold")
    found.add_column("settings", no_wrap=True, overflow="ellipsis", ratio=1)
    for name in ("step", "train", "valid"):
        found.add_column(name, no_wrap=True, justify="right")
    curve = min(16, max(8, width // 8))
    found.add_column("", no_wrap=True, width=curve)
    for trial in trials:
        found.add_row(*_cells(trial), sparkline(trial.losses[1:], curve))
    return found


def _cells(trial: Running) -> tuple[str, ...]:
    last = trial.losses[-1] if trial.losses else None
    steps = f"{int(trial.step)}/{trial.steps}"
    settings = escape(short_settings(trial.spec))
    return trial.spec.name, settings, steps, wording.loss(trial.train_loss), wording.loss(last)


def linked(text: str) -> Text:
    """The text with long addresses cut at their first `&`, as links that lead to the whole of them."""
    found = Text()
    for place, part in enumerate(re.split(r"(https?://[^\s&]+&\S+)", text)):
        is_address = place % 2 == 1
        found.append(part.partition("&")[0] if is_address else part, f"link {part}" if is_address else None)
    return found
