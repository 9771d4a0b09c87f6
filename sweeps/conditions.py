"""Axes that exist only where another axis has a certain value: `search.when`."""

from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep

from lora_core.errors import UserError
from sweeps.axes import Axis, hydra_text, same, storable
from sweeps.compose import parse
from sweeps.grammar import plain
from sweeps.keys import near_key


@dataclass(frozen=True)
class Condition:
    """`values`: those of the axis `key` with which another axis exists, as Optuna stores them."""

    key: str
    values: tuple[Any, ...]

    def allows(self, value: Any) -> bool:
        return any(same(storable(value), each) for each in self.values)


Conditions = dict[str, Condition]  # by the axis that exists only sometimes


def present(params: dict[str, Any], conditions: Conditions) -> dict[str, Any]:
    """Those of `params` whose axes exist, given the values of the others."""

    def exists(key: str) -> bool:
        condition = conditions.get(key)
        if condition is None:
            return True
        return condition.key in params and condition.allows(params[condition.key]) and exists(condition.key)

    return {key: value for key, value in params.items() if exists(key)}


def made_to_exist(values: dict[str, Any], conditions: Conditions) -> dict[str, Any]:
    """`values`, and what other axes must be for theirs to exist."""
    needed = {c.key: c.values[0] for key in values if (c := conditions.get(key)) and c.key not in values}
    return made_to_exist({**needed, **values}, conditions) if needed else values


def conditions_of(when: dict[str, str] | None, axes: list[Axis]) -> Conditions:
    """What `search.when` says of these axes. Raises UserError where it says nothing that could be."""
    known = {axis.key: axis for axis in axes}
    found = {key: _condition(key, text, known) for key, text in (when or {}).items()}
    for key in found:
        _check_no_circle(key, found)
    return found


def settled(when: dict[str, str], axes: list[Axis], fixed: dict[str, Any]) -> tuple[dict[str, str], list[Axis]]:
    """`when` less the conditions that keys with a `fixed` value settle, and the axes less the packaged ones that never
    exist then."""
    left, gone = dict[str, str](), set[str]()
    for key, text in when.items():
        (override,) = parse([text])
        other = override.key_or_group
        if key not in fixed and other not in fixed:
            left[key] = text
        elif other in fixed and not any(same(fixed[other], value) for value in _listed(override.value())):
            gone.add(key)
    return left, [axis for axis in axes if axis.written or axis.key not in gone]


def parents_first(keys: list[str], conditions: Conditions) -> list[str]:
    """The keys in an order in which each comes after the one that it depends on."""

    def depth(key: str) -> int:
        return 1 + depth(conditions[key].key) if key in conditions else 0

    return sorted(keys, key=depth)


def _condition(key: str, text: str, known: dict[str, Axis]) -> Condition:
    where = f"search.when: {key} when {text}"
    (override,) = parse([text])
    other = override.key_or_group
    for each in (key, other):
        if each not in known:
            raise UserError(f"{where}: {each} is no axis of this search.{near_key(each, known)}")
    axis = known[other]
    if axis.choices is None and axis.step is None:
        raise UserError(f"{where}: {axis} hardly ever has one certain value. List some ({other}=a,b).")
    return Condition(other, tuple(storable(value) for value in _values(override.value(), where, axis)))


def _listed(given: Any) -> list[Any]:
    return [plain(each) for each in given.list] if isinstance(given, ChoiceSweep) else [plain(given)]


def _values(given: Any, where: str, axis: Axis) -> list[Any]:
    values = _listed(given)
    for value in values:
        if not axis.contains(value):
            raise UserError(f"{where}: {hydra_text(value)} does not lie in the axis {axis}.")
    return values


def _check_no_circle(key: str, conditions: Conditions) -> None:
    passed = [key]
    while (condition := conditions.get(passed[-1])) is not None:
        if condition.key in passed:
            raise UserError(f"search.when goes in a circle: {' when '.join([*passed, condition.key])}.")
        passed.append(condition.key)
