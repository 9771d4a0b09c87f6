"""Rank against α/r or the learning rate: the median loss of the completed trials in each cell, and how many."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from lora_core.config import TrainConfig
from lora_core.records import TrialRecord
from reports.study import Study, finite, searched_keys, value

DARK_BELOW = 0.4  # cells of a lower shade carry light text
MAX_VALUES = 8  # more different values than this are binned
MIN_BINS = 2


@dataclass
class Cell:
    count: int
    median: float | None
    best: float | None
    winner: bool = False


@dataclass
class Heatmap:
    """`cells[i][j]` is rank `ranks[i]` at `columns[j]`, a value or a bin of `across`."""

    across: str
    ranks: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    cells: list[list[Cell]] = field(default_factory=list)
    why_not: str | None = None

    @property
    def empty(self) -> int:
        return sum(cell.count == 0 for row in self.cells for cell in row)

    def shade(self, cell: Cell) -> float:
        """Where the cell lies between the best (0) and the poorest (1)."""
        medians = [other.median for row in self.cells for other in row if other.median is not None]
        span = max(medians) - min(medians)
        return (cell.median - min(medians)) / span if cell.median is not None and span else 0.0

    @property
    def total(self) -> int:
        return sum(cell.count for row in self.cells for cell in row)


@dataclass
class Across:
    """What the columns are: its name, where a trial has it, and the keys that set it."""

    name: str
    of: Callable[[TrialRecord], float]
    keys: tuple[str, ...]


def compute(study: Study, across: Across) -> Heatmap:
    trials = [trial for trial in study.completed if has_rank(trial)]
    ranks = [rank_of(trial) for trial in trials]
    values = [across.of(trial) for trial in trials]
    if not trials:
        what = "trial with adapters" if study.completed else "trial"
        return Heatmap(across.name, why_not=f"Not drawn: no {what} has completed.")
    if len(set(ranks)) == 1 and len(set(values)) == 1:
        told = f"rank {ranks[0]:g} and {across.name} {values[0]:.4g}"
        why_not = f"Not drawn: neither rank nor {across.name} varied; all completed trials have {told}."
        return Heatmap(across.name, why_not=why_not)
    was_searched = not set(across.keys).isdisjoint(searched_keys(study))
    if not was_searched and len(set(zip(ranks, values, strict=True))) == len(set(ranks)):
        return Heatmap(across.name, why_not=f"Not drawn: {across.name} was not searched, each rank has one.")
    row_of, rank_labels = bins(ranks)
    column_of, labels = bins(values, continuous=_is_continuous(study, across))
    inside: dict[tuple[int, int], list[TrialRecord]] = {}
    for trial, rank, found in zip(trials, ranks, values, strict=True):
        inside.setdefault((row_of(rank), column_of(found)), []).append(trial)
    cells = [[_cell(inside.get((i, j), [])) for j in range(len(labels))] for i in range(len(rank_labels))]
    if study.winner in trials:
        cells[row_of(rank_of(study.winner))][column_of(across.of(study.winner))].winner = True
    return Heatmap(across.name, rank_labels, labels, cells)


def _cell(trials: list[TrialRecord]) -> Cell:
    losses = [loss for trial in trials if (loss := value(trial)) is not None]
    return Cell(len(losses), median(losses), min(losses)) if losses else Cell(0, None, None)


def has_rank(trial: TrialRecord) -> bool:
    """What trains the model's own weights has none."""
    return trial.config.get("train_type") != "full"


def rank_of(trial: TrialRecord) -> float:
    return float(TrainConfig.from_dict(trial.config).lora_parameters.rank)


def ratio_of(trial: TrialRecord) -> float:
    """α/r as measured, or as the configuration says."""
    measured = trial.metrics.get("scale_ratio")
    return measured if finite(measured) and measured else TrainConfig.from_dict(trial.config).lora_parameters.ratio


def rate_of(trial: TrialRecord) -> float:
    return float(TrainConfig.from_dict(trial.config).optimizer.learning_rate)


RATIO = Across("α/r", ratio_of, ("lora_parameters.scale_ratio", "lora_parameters.scale"))
RATE = Across("learning rate", rate_of, ("optimizer.learning_rate",))


def _is_continuous(study: Study, across: Across) -> bool:
    return any(axis.get("key") in across.keys and axis.get("kind") == "float" for axis in study.record.axes)


def bins(values: list[float], continuous: bool = False) -> tuple[Callable[[float], int], list[str]]:
    """Value → index, and the labels: each value its own; many or `continuous`: equal log steps."""
    distinct = sorted(set(values))
    if len(distinct) <= (1 if continuous else MAX_VALUES):
        return distinct.index, [f"{number:.4g}" for number in distinct]
    # About as many trials in a bin as there are bins.
    count = min(MAX_VALUES, max(MIN_BINS, math.ceil(math.sqrt(len(values)))))
    low, high = math.log(distinct[0]), math.log(distinct[-1])
    width = (high - low) / count
    labels = [f"{a:.2g}–{b:.2g}" for a, b in pairwise(math.exp(low + width * i) for i in range(count + 1))]
    # The small part keeps a value on an edge from falling below it by rounding.
    return lambda number: min(int((math.log(number) - low) / width + 1e-9), count - 1), labels
