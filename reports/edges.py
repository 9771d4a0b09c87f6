"""Where the winner lies at the end of an axis, and how the axis would be written with more room there."""

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from reports.study import Study, finite, has_axis, setting
from reports.wording import setting as written

NEAR = 0.05  # this part of a range counts as its end
FURTHER = 0.25  # by this part of itself a range is widened
MIN_CHOICES = 3  # of two, either would be an end
# Where a setting cannot go beyond; the others are only kept from falling below 0.
LIMITS = {
    "lora_parameters.rank": (1.0, math.inf),
    "lora_parameters.dropout": (0.0, 0.9),
    "optimizer.warmup": (0.0, 1.0),
    "trainer.batch_size": (1.0, math.inf),
}

Axis = dict[str, Any]


@dataclass
class Edge:
    """`bound` is the end that the winner's `value` is near, `to` where it should go, `override` the wider axis."""

    key: str
    value: float
    side: str  # lowest or highest
    bound: float
    to: float
    override: str


def edges(study: Study) -> list[Edge]:
    """The axes at whose end the winner lies, where there is room beyond. A single trial lies where it was drawn."""
    found = [_edge(study, axis) for axis in study.record.axes if len(study.eligible) > 1]
    return [edge for edge in found if edge is not None]


def _edge(study: Study, axis: Axis) -> Edge | None:
    key = axis["key"]
    ends = _choices(study, axis) if axis.get("choices") is not None else [axis["low"], axis["high"]]
    winner = study.winner
    value = _number(study, key, setting(winner, key)) if winner and has_axis(study, winner, key) else None
    if value is None or not ends or ends[0] == ends[-1]:
        return None
    side = _side(axis, ends, value)
    if side is None:
        return None
    bound = ends[0] if side == "lowest" else ends[-1]
    to = _within(_limits(study, key), axis, bound, _beyond(axis, ends, side))
    return None if to == bound else Edge(key, value, side, bound, to, _override(axis, side, to))


def _choices(study: Study, axis: Axis) -> list[float]:
    """The choices in order, if there are enough and all are numbers."""
    numbers = [_number(study, axis["key"], choice) for choice in axis["choices"]]
    known = sorted({number for number in numbers if number is not None})
    return known if len(known) >= MIN_CHOICES and None not in numbers else []


def _number(study: Study, key: str, value: Any) -> float | None:
    if key == "num_layers" and value == "all":
        return study.record.model.get("depth")
    return value if finite(value) else None


def _side(axis: Axis, ends: list[float], value: float) -> str | None:
    if axis.get("choices") is not None:
        return {ends[0]: "lowest", ends[-1]: "highest"}.get(value)
    scale = math.log if axis.get("log") else float
    part = (scale(value) - scale(ends[0])) / (scale(ends[-1]) - scale(ends[0]))
    return "lowest" if part <= NEAR else "highest" if part >= 1 - NEAR else None


def _limits(study: Study, key: str) -> tuple[float, float]:
    if key == "num_layers":
        return 1.0, study.record.model.get("depth") or math.inf
    return LIMITS.get(key, (0.0, math.inf))


def _within(limits: tuple[float, float], axis: Axis, bound: float, to: float) -> float:
    """`to`, or as near to it as the limits allow; on an axis with steps, whole steps away from `bound`."""
    to = min(max(to, limits[0]), limits[1])
    if step := axis.get("step"):
        return bound + step * math.trunc((to - bound) / step)
    return to


def _beyond(axis: Axis, ends: list[float], side: str) -> float:
    """The next value beyond: as the choices go on, or a quarter of the range further, on two digits."""
    outward = ends if side == "highest" else ends[::-1]
    bound, inner = outward[-1], outward[-2]
    if axis.get("choices") is not None:
        found = bound * bound / inner if _geometric(outward[-3:]) else 2 * bound - inner
    elif axis.get("log"):
        found = bound * (bound / inner) ** FURTHER
    else:
        found = bound + math.copysign(max(abs(bound - inner) * FURTHER, axis.get("step") or 0), bound - inner)
    whole = axis.get("kind") == "int" or all(float(end).is_integer() for end in ends)
    return round(found) if whole else float(f"{found:.2g}")


def _geometric(values: list[float]) -> bool:
    a, b, c = values
    return min(values) > 0 and math.isclose(b / a, c / b, rel_tol=0.01)


def _override(axis: Axis, side: str, to: float) -> str:
    """The axis as it would be typed."""
    if axis.get("choices") is not None:
        choices = [written(to), *map(written, axis["choices"])]
        return f"{axis['key']}={','.join(choices if side == 'lowest' else [*choices[1:], choices[0]])}"
    low, high = (to, axis["high"]) if side == "lowest" else (axis["low"], to)
    if axis.get("step") is not None:
        stop = Decimal(str(high)) + Decimal(str(axis["step"]))
        return f"{axis['key']}=range({low!r},{stop},{axis['step']!r})"
    inner = f"interval({low!r},{high!r})"
    inner = f"int({inner})" if axis.get("kind") == "int" else inner
    return f"{axis['key']}={f'tag(log,{inner})' if axis.get('log') else inner}"
