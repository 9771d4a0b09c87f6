"""One axis of a search space: what may be drawn, as Optuna and as Hydra write it."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_BARE_WORD = re.compile(r"[A-Za-z_][\w./-]*")
_RESERVED = {"true", "false", "null", "nan", "inf"}


@dataclass
class Axis:
    """`kind` is categorical (`choices`), int or float (`low` to `high`, both included; `step`: a grid).

    `group`: the choices are options of a config group. `written`: it comes from the command line.
    """

    key: str
    kind: str
    choices: list[Any] | None = None
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False
    group: bool = False
    written: bool = False

    def distribution(self) -> "BaseDistribution":
        """The axis as Optuna draws from it; `decode` gives the value that a draw stands for."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices is not None:
            return CategoricalDistribution(self._labels())
        low, high = self._ends()
        if self.kind == "int":
            return IntDistribution(int(low), int(high), step=int(self.step or 1), log=self.log)
        return FloatDistribution(low, high, step=self.step, log=self.log)

    def decode(self, param: Any) -> Any:
        """The value that Optuna's `param` stands for."""
        lists = [choice for choice in self.choices or [] if isinstance(choice, list)]
        return next((choice for choice in lists if storable(choice) == param), param)

    def contains(self, value: Any) -> bool:
        if self.choices is not None:
            return any(same(value, choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self._ends()
        if not low <= value <= high or (self.kind == "int" and value != int(value)):
            return False
        steps = (value - low) / self.step if self.step else 0
        return math.isclose(steps, round(steps), abs_tol=1e-6)

    def corners(self) -> list[Any]:
        """Every choice, or both ends: what is checked before a search starts."""
        return self.choices if self.choices is not None else [self.low, self.high]

    def to_dict(self) -> dict[str, Any]:
        """The axis for `study.json`; which command line it came from is no part of it."""
        names = ("key", "kind", "choices", "low", "high", "step", "log", "group")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        """The axis as a Hydra override."""
        return f"{self.key}={self._values_text()}"

    def _values_text(self) -> str:
        if self.choices is not None:
            texts = [hydra_text(choice) for choice in self.choices]
            return ",".join(texts) if len(texts) > 1 else f"choice({texts[0]})"
        low, high = self._ends()
        if self.step is not None:
            stop = type(low)(Decimal(str(high)) + Decimal(str(self.step)))
            return f"range({low!r},{stop!r},{self.step!r})"
        interval = f"interval({low!r},{high!r})"
        inner = f"int({interval})" if self.kind == "int" else interval
        return f"tag(log,{inner})" if self.log else inner

    def _ends(self) -> tuple[float, float]:
        assert self.low is not None and self.high is not None
        return self.low, self.high

    def _labels(self) -> list[Any]:
        return [storable(choice) for choice in self.choices or []]


def storable(value: Any) -> Any:
    """`value` as Optuna stores it: itself, or its text where Optuna cannot hold it (a list)."""
    return value if value is None or isinstance(value, bool | int | float | str) else hydra_text(value)


def same(a: Any, b: Any) -> bool:
    """Equal, and of one kind: "1" is not 1, nor is True, but 1.0 is."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def hydra_text(value: Any) -> str:
    """`value` such that Hydra's grammar reads it back with its type."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(hydra_text, value))}]"
    if isinstance(value, str):
        plain = _BARE_WORD.fullmatch(value) and value.lower() not in _RESERVED
        return value if plain else _quoted(value)
    return repr(value)


def _quoted(text: str) -> str:
    # A backslash counts only before a quote, so those before one (or at the end) are doubled.
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"
