"""What the line figures show: best so far by trial number, and loss by step."""

from collections import Counter
from dataclasses import dataclass, field

from lora_core.records import TrialRecord
from reports.study import Row, Study, finite, value
from reports.wording import LABELS, loss, plural

# Enough for every wiggle of a few trials; thinned beyond, so that a report of many stays small.
MAX_POINTS = 40_000
MIN_POINTS = 20


@dataclass
class Point:
    name: str
    number: int
    loss: float
    state: str
    eligible: bool = True  # breaks no constraint

    @property
    def may_win(self) -> bool:
        return self.state == "complete" and self.eligible


@dataclass
class History:
    """`best`: trial number → lowest loss of a completed trial up to it. `frame`: both ends of the axis."""

    points: list[Point] = field(default_factory=list)
    best: list[tuple[int, float]] = field(default_factory=list)
    references: dict[str, float] = field(default_factory=dict)  # base, default
    frame: tuple[float, float] = (0.0, 1.0)
    without_value: int = 0
    why_not: str | None = None


@dataclass
class Curve:
    """One trial's loss. `kind`: best, default, training (that of the best) or trial."""

    name: str
    kind: str
    state: str
    steps: list[float]
    losses: list[float]

    @property
    def label(self) -> str:
        """How the legend calls it; those of trials like others have no place there."""
        told = {"best": f"best: {self.name}", "training": "its training loss", "default": LABELS["default"]}
        return told.get(self.kind, "")

    @property
    def colour(self) -> str:
        return "best" if self.kind == "training" else self.kind


@dataclass
class Curves:
    """`lines`: the validation loss of each trial. `training`: the winner's training loss, the mean over the steps since
    the row before. `repeats`: the trainings with other seeds, which are not drawn: they belong to trials that are."""

    lines: list[Curve] = field(default_factory=list)
    training: Curve | None = None
    base: float | None = None
    repeats: int = 0
    frame: tuple[float, float] = (0.0, 1.0)
    why_not: str | None = None

    @property
    def losses(self) -> list[float]:
        """All losses after step 0."""
        drawn = [*self.lines, *([self.training] if self.training else [])]
        return [y for line in drawn for x, y in zip(line.steps, line.losses, strict=True) if x > 0]

    @property
    def pruned(self) -> dict[int, int]:
        """Step → how many trials were pruned there."""
        return dict(sorted(Counter(int(line.steps[-1]) for line in self.lines if line.state == "pruned").items()))


def history(study: Study) -> History:
    points = [
        Point(
            trial.name, trial.number if trial.number is not None else place, own, trial.state, not study.broken(trial)
        )
        for place, trial in enumerate(study.searched)
        if (own := value(trial)) is not None and trial.state in ("complete", "pruned")
    ]
    if not points:
        return History(why_not="Not drawn: no trial has a validation loss yet.")
    references = _references(study)
    missing = sum(trial.state != "running" for trial in study.searched) - len(points)
    shown = frame([point.loss for point in points], list(references.values()))
    return History(points, best_so_far(points), references, shown, missing)


def best_so_far(points: list[Point]) -> list[tuple[int, float]]:
    """Only what may win counts: completed trials that break no constraint."""
    best: list[tuple[int, float]] = []
    for point in sorted(points, key=lambda point: point.number):
        if point.may_win:
            best.append((point.number, min(point.loss, best[-1][1]) if best else point.loss))
    return best


def _references(study: Study) -> dict[str, float]:
    rows = {"base": value(study.base), "default": value(study.default)}
    return {name: own for name, own in rows.items() if own is not None}


def curves(study: Study) -> Curves:
    evaluated = [trial for trial in study.trials if any(row["step"] > 0 for row in study.curves[trial.name])]
    drawn = [trial for trial in evaluated if trial.role != "confirm"]
    if not drawn:
        return Curves(why_not="Not drawn: no trial has been evaluated after its first step yet.")
    limit = max(MIN_POINTS, MAX_POINTS // len(drawn))
    best = study.winner
    lines = [_curve(trial, thinned(study.curves[trial.name], limit), trial is best) for trial in drawn]
    found = Curves(lines, _training(study, limit), value(study.base), len(evaluated) - len(drawn))
    found.frame = frame(found.losses, [] if found.base is None else [found.base])
    return found


def _curve(trial: TrialRecord, rows: list[Row], wins: bool) -> Curve:
    kind = "best" if wins else "default" if trial.role == "default" else "trial"
    return Curve(trial.name, kind, trial.state, [row["step"] for row in rows], [row["val_loss"] for row in rows])


def _training(study: Study, limit: int) -> Curve | None:
    best = study.winner
    if best is None:
        return None
    rows = thinned([row for row in study.curves[best.name] if finite(row.get("train_loss"))], limit)
    steps, losses = [row["step"] for row in rows], [row["train_loss"] for row in rows]
    return Curve(best.name, "training", best.state, steps, losses) if rows else None


def thinned(rows: list[Row], limit: int) -> list[Row]:
    """At most `limit` of `rows`, evenly chosen, the first and the last among them."""
    if len(rows) <= limit:
        return rows
    return [rows[round(i * (len(rows) - 1) / (limit - 1))] for i in range(limit)]


def frame(losses: list[float], references: list[float]) -> tuple[float, float]:
    """The span of the loss axis: all but the worst twentieth of `losses`, and the references that lie near.

    A single diverging trial, or a base model far above all of them, would press the rest into a line.
    """
    ordered = sorted(losses)
    low, high = ordered[0], ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    reach = 1.5 * (high - low)
    near = [reference for reference in references if low - reach <= reference <= high + reach]
    low, high = min([low, *near]), max([high, *near])
    pad = 0.06 * (high - low) or 0.05
    return low - pad, high + pad


def outside(shown: tuple[float, float], losses: list[float], references: dict[str, float]) -> str:
    """What lies outside the frame, in a sentence; empty where nothing does."""
    beyond = sum(not shown[0] <= number <= shown[1] for number in losses)
    told = [f"{plural(beyond, 'point')} {'lies' if beyond == 1 else 'lie'} outside the frame."] if beyond else []
    for name, number in references.items():
        if not shown[0] <= number <= shown[1]:
            told.append(f"The {name} row ({loss(number)}) lies outside the frame.")
    return " ".join(told)
