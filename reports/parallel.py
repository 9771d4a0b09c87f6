"""All settings at once: a line for each trial, from the lowest value of each setting to its highest."""

import math
from dataclasses import dataclass

from reports.panels import Panel, Series
from reports.slices import Slice, Slices
from reports.wording import setting as written

BEST_PART = 0.25


@dataclass
class Lines:
    """Trials that are drawn alike."""

    name: str
    trials: set[str]
    colour: str
    width: float


def panels(found: Slices, names: dict[str, str], winner: str | None) -> list[Panel]:
    """Of one study: the winner, the best quarter, and the others."""
    losses = {point.name: point.loss for each in found.each for point in each.points}
    ranked, own = sorted(losses, key=lambda name: losses[name]), losses.keys() & {winner}
    first = set(ranked[: max(1, round(BEST_PART * len(ranked)))])
    groups = [
        Lines("others", losses.keys() - first - own, "trial", 1.0),
        Lines("best quarter", first - own, "group1", 1.6),
        Lines("winner", own, "best", 3.5),
    ]
    return [panel(found.each, names, groups)]


def panel(settings: list[Slice], names: dict[str, str], groups: list[Lines]) -> Panel:
    # What all trials have comes first, so that the line of one that lacks a setting ends rather than breaks.
    each_axis = sorted(settings, key=lambda each: -len(each.points))
    heights = [_heights(each) for each in each_axis]
    series = [_paths(group, heights) for group in groups if group.trials]
    ticks = {float(place): _ends(each, names) for place, each in enumerate(each_axis)}
    return Panel("", "lowest to highest", series, (-0.06, 1.06), ticks=ticks, hide_y=True)


def _heights(each: Slice) -> dict[str, float]:
    """Trial → where its value lies between the lowest (0) and the highest (1)."""
    scale = math.log if each.log else float
    scaled = {point.name: scale(point.at) for point in each.points}
    low, high = min(scaled.values()), max(scaled.values())
    return {name: round((at - low) / (high - low), 4) for name, at in scaled.items()}


def _paths(group: Lines, heights: list[dict[str, float]]) -> Series:
    x: list[float | None] = []
    y: list[float | None] = []
    labels: list[str] = []
    for trial in sorted(group.trials):
        x += [*map(float, range(len(heights))), None]
        y += [*(height.get(trial) for height in heights), None]
        labels += [trial] * (len(heights) + 1)
    return Series(group.name, x, y, group.colour, None, 0, group.width, labels=labels)


def _ends(each: Slice, names: dict[str, str]) -> str:
    low, high = (bound(point.at for point in each.points) for bound in (min, max))
    texts = [each.ticks.get(end, written(end)) for end in (low, high)]
    return f"{names.get(each.key, each.key)}\n{texts[0]} –\n{texts[1]}"
