"""How the loss depends on one setting, and on the learning rate of each rank or method."""

import math
from dataclasses import dataclass, field
from typing import Any

from lora_core.records import TrialRecord
from reports.curves import frame
from reports.panels import COLOURS, SYMBOLS, Panel, Series
from reports.study import Study, finite, has_axis, searched_keys, setting, value
from reports.trial_settings import has_rank, method_of, rank_of, rate_of
from reports.wording import listed
from reports.wording import setting as written

BINS = 6  # of the learning rate, between the lowest and the highest
ENOUGH = 3  # learning rates, to call one the best


@dataclass
class Point:
    name: str
    at: float
    loss: float


@dataclass
class Rate:
    """The trials of one rank, or of one method, by learning rate. `valley`: the best of each bin of the rate, joined in
    the figure."""

    group: str
    points: list[Point]
    valley: list[Point]


@dataclass
class Rates:
    """`best`: group → learning rate of its best trial, where there are enough to compare."""

    by: str = "rank"  # or method
    groups: list[Rate] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    why_not: str | None = None

    @property
    def caption(self) -> str:
        told = f"Joined: the best of each of {BINS} parts of the range."
        best = ", ".join(f"{group}: {written(rate)}" for group, rate in self.best.items())
        found = f" Best learning rate by {self.by}: {best}." if best else ""
        few = listed([rate.group for rate in self.groups if rate.group not in self.best])
        return told + found + (f" Too few trials to tell the best learning rate of {few}." if few else "")


@dataclass
class Slice:
    """The completed trials that have a searched setting, by it; `ticks`: position → text, where its values are no
    numbers."""

    key: str
    points: list[Point]
    ticks: dict[float, str]
    log: bool


@dataclass
class Slices:
    each: list[Slice] = field(default_factory=list)
    why_not: str | None = None

    @property
    def some_lack(self) -> bool:
        """Whether not every trial has every setting."""
        return len({len(each.points) for each in self.each}) > 1


def rates(study: Study) -> Rates:
    if len({rate_of(trial) for trial in study.completed}) < ENOUGH:
        return Rates(why_not="Not drawn: the completed trials have fewer than three learning rates.")
    # What trains the model's own weights has no rank, and each method has a best rate of its own.
    by_method = "train_type" in searched_keys(study) or not any(map(has_rank, study.completed))
    group_of = method_of if by_method else rank_of
    grouped: dict[Any, list[Point]] = {}
    for trial in study.completed:
        grouped.setdefault(group_of(trial), []).append(_point(trial, rate_of(trial)))
    every = [point.at for points in grouped.values() for point in points]
    found = Rates("method" if by_method else "rank")
    for group, points in sorted(grouped.items()):
        points.sort(key=lambda point: point.at)
        name = group if by_method else f"rank {group:g}"
        found.groups.append(Rate(name, points, _valley(points, min(every), max(every))))
        if len(points) >= ENOUGH:
            found.best[name] = min(points, key=lambda point: point.loss).at
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
    trials = [trial for trial in study.completed if has_axis(study, trial, key)]
    values = [setting(trial, key) for trial in trials]
    axis = next((axis for axis in study.record.axes if axis.get("key") == key), {})
    if axis.get("choices") is None and all(finite(each) for each in values):
        points = [_point(t, v) for t, v in zip(trials, values, strict=True)]
        return Slice(key, points, {}, bool(axis.get("log")))
    # A choice stands at its place in the space; one that was given up since comes after.
    order = list(dict.fromkeys(map(written, [*(axis.get("choices") or []), *sorted(values, key=_sortable)])))
    points = [_point(t, float(order.index(written(v)))) for t, v in zip(trials, values, strict=True)]
    return Slice(key, points, {float(place): text for place, text in enumerate(order)}, False)


def _sortable(found: Any) -> tuple[bool, float, str]:
    return (True, found, "") if finite(found) else (False, 0.0, str(found))


def rate_panels(found: Rates) -> list[Panel]:
    series = []
    for place, rate in enumerate(found.groups):
        colour, symbol = COLOURS[place % len(COLOURS)], SYMBOLS[place % len(SYMBOLS)]
        name = f"{rate.group} (n = {len(rate.points)})"
        series.append(_marks(name, rate.points, colour, symbol, 8))
        series.append(_marks("", rate.valley, colour, None, 0, line=1.8))
    losses = [point.loss for rate in found.groups for point in rate.points]
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
