"""From Hydra's sweep overrides to axes; what has no clear meaning in a search is refused in plain words."""

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    OverrideType,
    QuotedString,
    RangeSweep,
)

from lora_core.errors import UserError
from sweeps.axes import Axis, same
from sweeps.explain import unknown_key
from sweeps.keys import expected

# What one study has once: its seed, how it is run, and what its trials share, which makes them comparable.
FIXED = (
    "seed", "study", "n_trials", "storage", "output_dir", "adapter_path", "fuse", "fuse_quantization", "keep_state",
    "resume", "resume_strict", "tracking", "cluster",
    "search", "hydra", "model", "data", "quantization", "quantization_group_size", "trainer.slots",
    "trainer.max_seq_length", "trainer.eval_every", "trainer.eval_rows",
    "trainer.memory_fraction",
)  # fmt: skip


def is_fixed(key: str) -> bool:
    return any(re.match(rf"{re.escape(fixed)}([./]|$)", key) for fixed in FIXED)


def axis_from(override: Override, known: Mapping[str, set[type]], groups: frozenset[str]) -> Axis:
    """The axis that a sweep override means. `known`: config key → its types."""
    key, text = override.key_or_group, str(override.input_line)
    _check_key(override, key, text, known, groups)
    sweep = override.value()
    if isinstance(sweep, Glob) or re.search(r"\b(sort|shuffle|glob)\s*\(", _without_quoted(text)):
        raise UserError(f"{text}: sort, shuffle, glob mean nothing in a search. List the values: {key}=a,b")
    _check_tags(sweep, text)
    if isinstance(sweep, ChoiceSweep):
        return _categorical(key, sweep, text, group=key in groups)
    types = known.get(key, set())
    if not types & {int, float}:
        raise UserError(f"{text}: {key} takes {expected(types)}, not a range. List the values: {key}=a,b")
    if isinstance(sweep, RangeSweep):
        return _grid(key, sweep, text, types)
    assert isinstance(sweep, IntervalSweep)
    return _interval(key, sweep, text, types)


def _check_key(override: Override, key: str, text: str, known: Mapping[str, set[type]], groups: frozenset[str]) -> None:
    if override.type is not OverrideType.CHANGE or override.package is not None:
        raise UserError(f"{text}: an axis is written key=values, without +, ~ or @.")
    if is_fixed(key):
        raise UserError(f"{text}: {key} cannot be searched, all trials of a study share it. Give one value.")
    if key not in known and key not in groups:
        raise unknown_key(key, dict(known) | {group: {str} for group in groups})


def _without_quoted(text: str) -> str:
    return re.sub(r"'(\\.|[^'\\])*'|\"(\\.|[^\"\\])*\"", "''", text)


def _check_tags(sweep: Any, text: str) -> None:
    allowed = {"log"} if isinstance(sweep, IntervalSweep) else set()
    if sweep.tags - allowed:
        raise UserError(
            f"{text}: the tag {', '.join(sorted(sweep.tags - allowed))} means nothing here. "
            "A log scale is written tag(log,interval(low,high))."
        )


def _categorical(key: str, sweep: ChoiceSweep, text: str, group: bool) -> Axis:
    choices = [plain(choice) for choice in sweep.list]
    for index, choice in enumerate(choices):
        if isinstance(choice, float) and not math.isfinite(choice):
            raise UserError(f"{text}: {choice} is not a number that can be searched.")
        if any(same(choice, earlier) for earlier in choices[:index]):
            raise UserError(f"{text}: {choice} is listed twice.")
    return Axis(key, "categorical", choices=choices, group=group)


def plain(value: Any) -> Any:
    """A parsed value without Hydra's wrapping."""
    if isinstance(value, QuotedString):
        return value.text
    return [plain(item) for item in value] if isinstance(value, list) else value


def _grid(key: str, sweep: RangeSweep, text: str, types: set[type]) -> Axis:
    numbers = [_finite(number, text) for number in (sweep.start, sweep.stop, sweep.step)]
    start, stop, step = (Decimal(str(number)) for number in numbers)
    if step <= 0 or start >= stop:
        raise UserError(
            f"{text} is {'empty' if start == stop else 'reversed'}: expected range(start,stop,step) with "
            "start below stop, which is left out, and a step above 0."
        )
    last = start + (math.ceil((stop - start) / step) - 1) * step
    number = float if float in types else int
    if number is int and any(value != int(value) for value in (start, step)):
        raise UserError(f"{text}: {key} takes whole numbers.")
    return Axis(key, number.__name__, low=number(start), high=number(last), step=number(step))


def _interval(key: str, sweep: IntervalSweep, text: str, types: set[type]) -> Axis:
    low, high = _finite(sweep.start, text), _finite(sweep.end, text)
    log = "log" in sweep.tags
    if low > high:
        raise UserError(f"{text} is reversed: expected interval(low,high).")
    if log and low <= 0:
        raise UserError(f"{text}: a log scale starts above 0, found {low:g}.")
    # Hydra makes every interval one of floats, unless it is written int(interval(...)).
    if float in types and not isinstance(low, int):
        return Axis(key, "float", low=low, high=high, log=log)
    if low != int(low) or high != int(high):
        raise UserError(f"{text}: {key} takes whole numbers.")
    return Axis(key, "int", low=int(low), high=int(high), log=log)


def _finite(number: Any, text: str) -> Any:
    if not isinstance(number, int | float) or not math.isfinite(number):
        raise UserError(f"{text}: {number} is not a finite number.")
    return number
