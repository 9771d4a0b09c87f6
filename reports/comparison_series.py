"""Studies in one panel: a colour and a mark for each."""

from reports.comparison import Comparison
from reports.curves import frame
from reports.panels import COLOURS, SYMBOLS, Panel, Series

LOSS = "best_val_loss (nats per token)"


def colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def grouped(
    found: Comparison, points: list[list[tuple[float, float]]], line: float = 0.0, step: bool = False
) -> list[Series]:
    """`points`: those of each study, none where it has nothing to show."""
    series = []
    for place, (member, own) in enumerate(zip(found.members, points, strict=True)):
        x, y = [at for at, _ in own], [loss for _, loss in own]
        symbol, labels = SYMBOLS[place % len(SYMBOLS)], [member.study] * len(own)
        if own:
            series.append(Series(member.study, [*x], [*y], colour(place), symbol, 7, line, step, labels))
    return series


def panel(x: str, y: str, series: list[Series], log_x: bool = False) -> Panel:
    losses = [loss for one in series for loss in one.y if loss is not None]
    return Panel(x, y, series, frame(losses, []) if losses else None, log_x)
