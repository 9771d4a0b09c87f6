"""Rank against α/r or the learning rate: the median loss of the completed trials in each cell, and how many."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from lora_core.records import TrialRecord
from reports.panels import Tiles
from reports.study import Study, searched_keys, value
from reports.trial_settings import has_rank, rank_of, rate_of, ratio_of
from reports.wording import NOTHING, loss, plural

MAX_VALUES = 8  # more different values than this are binned
MIN_BINS = 2
MEANING = (
    "Median of best_val_loss over the completed trials in each cell, and how many (n) there are; hatched where there "
    "is none."
)


@dataclass
class Cell:
    count: int
    median: float | None
    best: float | None
    winner: bool = False


@dataclass
class Heatmap:
    """`cells[i][j]` is rank `ranks[i]` at `columns[j]`, a value or a bin of `across`. `scale`: the poorest and the best
    median, the ends of the colour scale."""

    across: str
    ranks: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    cells: list[list[Cell]] = field(default_factory=list)
    scale: tuple[float, float] = (0.0, 0.0)
    why_not: str | None = None

    @property
    def empty(self) -> int:
        return sum(cell.count == 0 for row in self.cells for cell in row)

    @property
    def medians(self) -> list[float]:
        return [cell.median for row in self.cells for cell in row if cell.median is not None]

    @property
    def total(self) -> int:
        return sum(cell.count for row in self.cells for cell in row)

    @property
    def caption(self) -> str:
        return f"{MEANING} {self.content}"

    @property
    def content(self) -> str:
        cells = plural(sum(map(len, self.cells)), "cell")
        has_winner = any(cell.winner for row in self.cells for cell in row)
        star = "; ★ marks the cell of the winner" if has_winner else ""
        return f"{plural(self.total, 'completed trial')}, {self.empty} of {cells} without one{star}."


@dataclass
class Across:
    """What the columns are: its name, where a trial has it, and the keys that set it."""

    name: str
    of: Callable[[TrialRecord], float]
    keys: tuple[str, ...]


RATIO = Across("α/r", ratio_of, ("lora_parameters.scale_ratio", "lora_parameters.scale"))
RATE = Across("learning rate", rate_of, ("optimizer.learning_rate",))


def compute(study: Study, across: Across) -> Heatmap:
    return together([study], across)[0]


def together(studies: list[Study], across: Across) -> list[Heatmap]:
    """A map for each study, all with the same rows, columns and colour scale."""
    found = [Heatmap(across.name, why_not=_why_not(study, across)) for study in studies]
    drawn = [(study, one) for study, one in zip(studies, found, strict=True) if not one.why_not]
    trials = [trial for study, _ in drawn for trial in _ranked(study)]
    row_of, ranks = bins([rank_of(trial) for trial in trials])
    is_continuous = any(_is_continuous(study, across) for study, _ in drawn)
    column_of, columns = bins([across.of(trial) for trial in trials], is_continuous)
    for study, one in drawn:
        inside: dict[tuple[int, int], list[TrialRecord]] = {}
        for trial in _ranked(study):
            inside.setdefault((row_of(rank_of(trial)), column_of(across.of(trial))), []).append(trial)
        one.ranks, one.columns, places = ranks, columns, range(len(columns))
        one.cells = [[_cell(study, inside.get((i, j), [])) for j in places] for i in range(len(ranks))]
    shown = [shade for one in found for shade in one.medians]
    for _, one in drawn:
        one.scale = max(shown), min(shown)
    return found


def _ranked(study: Study) -> list[TrialRecord]:
    return [trial for trial in study.completed if has_rank(trial)]


def _why_not(study: Study, across: Across) -> str | None:
    pairs = {(rank_of(trial), across.of(trial)) for trial in _ranked(study)}
    if not pairs:
        what = "trial with adapters" if study.completed else "trial"
        return f"Not drawn: no {what} has completed."
    if len(pairs) == 1:
        ((rank, found),) = pairs
        told = f"rank {rank:g} and {across.name} {found:.4g}"
        return f"Not drawn: neither rank nor {across.name} varied; all completed trials have {told}."
    if set(across.keys).isdisjoint(searched_keys(study)) and len(pairs) == len({rank for rank, _ in pairs}):
        return f"Not drawn: {across.name} was not searched, each rank has one."
    return None


def _cell(study: Study, trials: list[TrialRecord]) -> Cell:
    losses = [loss for trial in trials if (loss := value(trial)) is not None]
    if not losses:
        return Cell(0, None, None)
    return Cell(len(losses), median(losses), min(losses), study.winner in trials)


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


def tiles(found: Heatmap) -> Tiles:
    values = [[cell.median for cell in row] for row in found.cells]
    labels = [[f"median {loss(cell.median)}, best {loss(cell.best)}" for cell in row] for row in found.cells]
    texts = [[_text(cell) for cell in row] for row in found.cells]
    return Tiles(found.across, "rank r", found.columns, found.ranks, values, found.scale, "loss", labels, texts)


def _text(cell: Cell) -> str:
    return f"{loss(cell.median)}\nn={cell.count}{' ★' if cell.winner else ''}" if cell.count else NOTHING
