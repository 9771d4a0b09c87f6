"""What a lower loss costs: for each cost the trials that no other beats in both."""

from dataclasses import dataclass, field

from reports.curves import frame
from reports.panels import Panel, Series
from reports.study import Study, finite, value
from reports.wording import plural

COSTS = {
    "trainable_params": "trainable parameters",
    "adapter_mb": "adapter size (MB)",
    "peak_memory_gb": "peak memory (GB)",
    "train_seconds": "training time (s)",
}
SHARED = ("peak_memory_gb", "train_seconds")  # by all trials that are trained at a time


@dataclass
class Trade:
    """One completed trial. `best`: no other is lower in loss or cost without being higher in the other."""

    name: str
    cost: float
    loss: float
    best: bool = False


@dataclass
class Tradeoff:
    """All completed trials by one cost, cheapest first."""

    cost: str
    trades: list[Trade]

    @property
    def front(self) -> list[Trade]:
        return [trade for trade in self.trades if trade.best]


@dataclass
class Tradeoffs:
    each: list[Tradeoff] = field(default_factory=list)
    same: list[str] = field(default_factory=list)  # costs that do not differ
    why_not: str | None = None

    @property
    def caption(self) -> str:
        fronts = ", ".join(f"{plural(len(found.front), 'trial')} by {COSTS[found.cost]}" for found in self.each)
        same = f" Not drawn, as all trials have the same: {', '.join(COSTS[cost] for cost in self.same)}."
        joined = f"Joined: trials than which none is as good and cheaper, or as cheap and better ({fronts})."
        told = f"{joined} ★ marks the winner."
        shared = " Memory and time are those of all trials in a batch." if self.has_shared else ""
        return told + shared + (same if self.same else "")

    @property
    def has_shared(self) -> bool:
        return any(found.cost in SHARED for found in self.each)


def compute(study: Study) -> Tradeoffs:
    if len(study.completed) < 2:
        return Tradeoffs(why_not=f"Not drawn: {plural(len(study.completed), 'trial')} completed, 2 are needed.")
    found = Tradeoffs()
    for cost in COSTS:
        trades = _trades(study, cost)
        if len({trade.cost for trade in trades}) > 1:
            found.each.append(Tradeoff(cost, trades))
        elif trades:
            found.same.append(cost)
    if not found.each:
        found.why_not = "Not drawn: all trials cost the same." if found.same else "Not drawn: no costs are recorded."
    return found


def _trades(study: Study, cost: str) -> list[Trade]:
    found = []
    for trial in study.completed:
        own, price = value(trial), trial.metrics.get(cost)
        if own is not None and price is not None and finite(price):
            found.append(Trade(trial.name, price, own))
    found.sort(key=lambda trade: (trade.cost, trade.loss))
    lowest = float("inf")
    for trade in found:
        trade.best, lowest = trade.loss < lowest, min(trade.loss, lowest)
    return found


def panels(found: Tradeoffs, winner: str | None) -> list[Panel]:
    return [_panel(each, winner) for each in found.each]


def _panel(found: Tradeoff, winner: str | None) -> Panel:
    beaten = [trade for trade in found.trades if not trade.best]
    own = [trade for trade in found.trades if trade.name == winner]
    series = [
        _series("beaten", beaten, "trial", size=7),
        _series("best for its cost", found.front, "best", line=2),
        _series("winner", own, "best", symbol="star", size=15),
    ]
    costs, losses = [trade.cost for trade in found.trades], [trade.loss for trade in found.trades]
    wide = min(costs) > 0 and max(costs) / min(costs) > 10
    return Panel(COSTS[found.cost], "best_val_loss", series, frame(losses, []), log_x=wide)


def _series(
    name: str, trades: list[Trade], colour: str, symbol: str = "circle", size: float = 9, line: float = 0.0
) -> Series:
    return Series(
        name, [trade.cost for trade in trades], [trade.loss for trade in trades], colour, symbol, size, line,
        labels=[trade.name for trade in trades],
    )  # fmt: skip
