"""What a terminal shows: trials in training as a table, curves as characters, lines that fit."""

import math
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
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
