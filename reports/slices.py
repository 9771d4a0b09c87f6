"""How the loss depends on one setting at a time, on the learning rate at each rank, and on all settings together."""

import math
from dataclasses import dataclass, field
from typing import Any

from lora_core.records import TrialRecord
from reports.curves import frame
from reports.heatmap import rank_of, rate_of
from reports.panels import COLOURS, SYMBOLS, Panel, Series
from reports.study import Study, finite, searched_keys, setting, value
from reports.wording import setting as written

BINS = 6  # of the learning rate, between the lowest and the highest
BEST_PART = 0.25


@dataclass
class Point:
    name: str
    at: float
    loss: float


@dataclass
class Rate:
    """The trials of one rank by learning rate. `valley`: the best of each bin of the rate, joined in the figure."""

    rank: float
    points: list[Point]
    valley: list[Point]


@dataclass
class Rates:
    ranks: list[Rate] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)  # rank → learning rate of its best trial
    why_not: str | None = None

    @property
    def caption(self) -> str:
        best = ", ".join(f"rank {rank}: {written(rate)}" for rank, rate in self.best.items())
        return f"Joined: the best of each of {BINS} parts of the range. Best learning rate by {best}."


@dataclass
class Slice:
    """The completed trials by one searched setting; `ticks`: position → text, where its values are no numbers."""

    key: str
    points: list[Point]
    ticks: dict[float, str]
    log: bool


@dataclass
class Slices:
    each: list[Slice] = field(default_factory=list)
    why_not: str | None = None


def rates(study: Study) -> Rates:
    if len({rate_of(trial) for trial in study.completed}) < 3:
        return Rates(why_not="Not drawn: the completed trials have fewer than three learning rates.")
    by_rank: dict[float, list[Point]] = {}
    for trial in study.completed:
        by_rank.setdefault(rank_of(trial), []).append(_point(trial, rate_of(trial)))
    every = [point.at for points in by_rank.values() for point in points]
    found = Rates()
    for rank, points in sorted(by_rank.items()):
        points.sort(key=lambda point: point.at)
        found.ranks.append(Rate(rank, points, _valley(points, min(every), max(every))))
        found.best[f"{rank:g}"] = min(points, key=lambda point: point.loss).at
    return found


def _point(trial: TrialRecord, at: float) -> Point:
    own = value(trial)
    assert own is not None  # only completed trials are drawn
    return Point(trial.name, at, own)


def _valley(points: list[Point], low: float, high: float) -> list[Point]:
    best: dict[int, Point] = {}
    for point in points:
        place = min(int(BINS * math.log(point.at / low) / math.log(high / low)), BINS - 1)
        if place not in best or point.loss < best[place].loss:
            best[place] = point
    return [best[place] for place in sorted(best)]


def slices(study: Study) -> Slices:
    if not study.completed:
        return Slices(why_not="Not drawn: no trial has completed.")
    each = [_slice(study, key) for key in searched_keys(study)]
    found = [one for one in each if len({point.at for point in one.points}) > 1]
    return Slices(found) if found else Slices(why_not="Not drawn: no searched setting varied.")


def _slice(study: Study, key: str) -> Slice:
    values = [setting(trial, key) for trial in study.completed]
    axis = next((axis for axis in study.record.axes if axis.get("key") == key), {})
    if axis.get("choices") is None and all(finite(each) for each in values):
        points = [_point(t, v) for t, v in zip(study.completed, values, strict=True)]
        return Slice(key, points, {}, bool(axis.get("log")))
    # A choice stands at its place in the space; one that was given up since comes after.
    order = list(dict.fromkeys(map(written, [*(axis.get("choices") or []), *sorted(values, key=_sortable)])))
    points = [_point(t, float(order.index(written(v)))) for t, v in zip(study.completed, values, strict=True)]
    return Slice(key, points, {float(place): text for place, text in enumerate(order)}, False)


def _sortable(found: Any) -> tuple[bool, float, str]:
    return (True, found, "") if finite(found) else (False, 0.0, str(found))


def rate_panels(found: Rates) -> list[Panel]:
    series = []
    for place, rate in enumerate(found.ranks):
        colour, symbol = COLOURS[place % len(COLOURS)], SYMBOLS[place % len(SYMBOLS)]
        name = f"rank {rate.rank:g} (n = {len(rate.points)})"
        series.append(_marks(name, rate.points, colour, symbol, 8))
        series.append(_marks("", rate.valley, colour, None, 0, line=1.8))
    losses = [point.loss for rate in found.ranks for point in rate.points]
    return [Panel("learning rate", "best_val_loss (nats per token)", series, frame(losses, []), log_x=True)]


def _marks(name: str, points: list[Point], colour: str, symbol: str | None, size: float, line: float = 0.0) -> Series:
    x, y = [point.at for point in points], [point.loss for point in points]
    return Series(name, [*x], [*y], colour, symbol, size, line, labels=[point.name for point in points])


def slice_panels(found: Slices, names: dict[str, str], winner: str | None) -> list[Panel]:
    panels = []
    for each in found.each:
        name = names.get(each.key, each.key)
        own = [point for point in each.points if point.name == winner]
        series = [_marks("completed", each.points, "trial", "circle", 7), _marks("winner", own, "best", "star", 14)]
        losses = [point.loss for point in each.points]
        panels.append(Panel(name, "best_val_loss", series, frame(losses, []), log_x=each.log, ticks=each.ticks))
    return panels


def parallel(found: Slices, names: dict[str, str], winner: str | None) -> list[Panel]:
    """One line a trial through all its settings: the winner, the best quarter, and the others."""
    ranked = sorted(found.each[0].points, key=lambda point: point.loss)
    first = {point.name for point in ranked[: max(1, round(BEST_PART * len(ranked)))]}
    rest = {point.name for point in ranked} - first
    heights = [_heights(each) for each in found.each]
    series = [
        _paths("others", heights, rest - {winner}, "trial", 1.0),
        _paths("best quarter", heights, first - {winner}, "group1", 1.6),
    ]
    if winner is not None:
        series.append(_paths("winner", heights, {winner}, "best", 3.5))
    ticks = {float(place): _ends(each, names) for place, each in enumerate(found.each)}
    return [Panel("", "lowest to highest", series, (-0.06, 1.06), ticks=ticks, hide_y=True)]


def _heights(each: Slice) -> dict[str, float]:
    """Trial → where its value lies between the lowest (0) and the highest (1)."""
    scale = math.log if each.log else float
    scaled = {point.name: scale(point.at) for point in each.points}
    low, high = min(scaled.values()), max(scaled.values())
    return {name: round((at - low) / (high - low), 4) for name, at in scaled.items()}


def _paths(name: str, heights: list[dict[str, float]], members: set[str], colour: str, line: float) -> Series:
    x: list[float | None] = []
    y: list[float | None] = []
    labels: list[str] = []
    for member in sorted(members):
        x += [*map(float, range(len(heights))), None]
        y += [*(height[member] for height in heights), None]
        labels += [member] * (len(heights) + 1)
    return Series(name, x, y, colour, None, 0, line, labels=labels)


def _ends(each: Slice, names: dict[str, str]) -> str:
    low, high = (bound(point.at for point in each.points) for bound in (min, max))
    texts = [each.ticks.get(end, written(end)) for end in (low, high)]
    return f"{names.get(each.key, each.key)}\n{texts[0]} – {texts[1]}"
