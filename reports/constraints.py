"""Conditions on the numbers of a trial that a winner must meet: `peak_memory_gb<=12`."""

import math
import re
from dataclasses import dataclass
from typing import Any

from lora_core.errors import UserError, near
from lora_core.records import TrialRecord
from reports.wording import amount

# Numbers of a trial's record; of the second group less is better.
MEASURED = ("tokens_per_second", "scale_ratio", "multiplier")
COSTS = (
    "val_loss", "best_val_loss", "final_val_loss", "val_perplexity", "adapter_mb", "peak_memory_gb",
    "trainable_params", "train_seconds",
)  # fmt: skip
ALIASES = {"val_loss": "best_val_loss"}
_FORM = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Constraint:
    metric: str
    operator: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}{self.operator}{self.bound:g}"

    def excess(self, metrics: dict[str, float]) -> float | None:
        """How far the trial's number is from where it may be, 0 or less if it may be there; None without a number."""
        found = metrics.get(ALIASES.get(self.metric, self.metric))
        if found is None or not math.isfinite(found):
            return None
        over = found - self.bound if self.operator.startswith("<") else self.bound - found
        # At the bound itself `<` is broken, by as little as can be.
        return over if over != 0 or self.operator.endswith("=") else math.nextafter(0, 1)

    def kept_by(self, metrics: dict[str, float]) -> bool:
        excess = self.excess(metrics)
        return excess is not None and excess <= 0


def parse(text: str) -> Constraint:
    """The constraint that `text` means. Raises UserError for any other form, or an unknown metric."""
    known = (*COSTS, *MEASURED)
    found = _FORM.fullmatch(text)
    if found is None:
        raise UserError(
            f"search.constraints: {text!r} cannot be read: expected a metric, one of <= < >= >, and a number, "
            "such as 'peak_memory_gb<=12'."
        )
    metric, operator, bound = found.groups()
    if metric not in known:
        raise UserError(
            f"search.constraints: {text!r}: there is no metric {metric}.{near(metric, known)}\nThere are: "
            f"{', '.join(known)}."
        )
    return Constraint(metric, operator, float(bound))


def constraints_of(config: dict[str, Any]) -> list[Constraint]:
    """Those of a study's resolved configuration."""
    return [parse(text) for text in config.get("search", {}).get("constraints") or []]


def broken(trial: TrialRecord, constraints: list[Constraint]) -> str:
    """`breaks adapter_mb<2 (3.1)`, or an empty text for a trial that breaks none or did not complete."""
    if trial.state != "complete":
        return ""
    wrong = [constraint for constraint in constraints if not constraint.kept_by(trial.metrics)]
    told = [f"{each} ({_found(trial, each)})" for each in wrong]
    return f"breaks {', '.join(told)}" if told else ""


def _found(trial: TrialRecord, constraint: Constraint) -> str:
    number = trial.metrics.get(ALIASES.get(constraint.metric, constraint.metric))
    return "not known" if number is None else amount(number) if abs(number) >= 1000 else f"{number:.4g}"
