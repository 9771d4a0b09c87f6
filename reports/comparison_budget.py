"""How far each study was after as much as all have spent: trials, or optimizer steps."""

import math
from dataclasses import dataclass

from reports.curves import history
from reports.study import Study


@dataclass
class Reached:
    """The best so far after so many trials, which took so many steps."""

    trials: int
    steps: int
    loss: float


@dataclass
class Budget:
    """What each study had reached when as much was spent as the cheapest of them spent in all."""

    unit: str
    spent: int
    reached: dict[str, float]  # study → loss; those without a completed trial by then are left out


def reached(study: Study) -> list[Reached]:
    """The best so far by what had been spent, pruned and failed trials included, in the order in which they ended."""
    losses = {point.name: point.loss for point in history(study).points if point.may_win}
    over = [trial for trial in study.searched if trial.state != "running"]
    found: list[Reached] = []
    trials, steps, lowest = 0, 0, math.inf
    for trial in sorted(over, key=lambda trial: trial.ended or ""):
        trials, steps = trials + 1, steps + trial.step
        lowest = min(lowest, losses.get(trial.name, math.inf))
        found += [Reached(trials, steps, lowest)] if math.isfinite(lowest) else []
    return found


def budgets(best: dict[str, list[Reached]]) -> list[Budget]:
    """By study, in trials and in steps; none unless every study has something to show."""
    return [_budget(best, unit) for unit in ("trials", "steps")] if all(best.values()) else []


def _budget(best: dict[str, list[Reached]], unit: str) -> Budget:
    spent = min(getattr(each[-1], unit) for each in best.values())
    within = {study: [one.loss for one in each if getattr(one, unit) <= spent] for study, each in best.items()}
    return Budget(unit, spent, {study: losses[-1] for study, losses in within.items() if losses})
