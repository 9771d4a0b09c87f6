"""The figures of a comparison: a colour and a mark for each study."""

from reports.comparison import Comparison
from reports.curves import frame
from reports.panels import COLOURS, SYMBOLS, Panel, Series
from reports.study import short_names


def panels(found: Comparison) -> dict[str, list[Panel]]:
    """Name → panels, of what can be drawn: best so far, the winners' curves, learning rates, costs."""
    y = "best_val_loss (nats per token)"
    drawn = {
        "best": [_best(found, "trials", "trials ended", y), _best(found, "steps", "optimizer steps in all", y)],
        "importance": [_importance(found)],
        "curves": [_panel("optimizer step", "validation loss (nats per token)", _curves(found))],
        "rates": [_panel("learning rate", y, _rates(found), log_x=True)],
        "tradeoffs": [_panel("trainable parameters", y, _costs(found), log_x=True)],
    }
    return {name: each for name, each in drawn.items() if any(one.series for one in each)}


def _best(found: Comparison, unit: str, x: str, y: str) -> Panel:
    points = [[(float(getattr(one, unit)), one.loss) for one in each.best] for each in found.members]
    return _panel(x, y, _grouped(found, points, line=2, step=True))


def _importance(found: Comparison) -> Panel:
    """A place for each setting, that which matters most to any of the studies first."""
    highest: dict[str, float] = {}
    for member in found.members:
        for key, share in member.importance.shares.items():
            highest[key] = max(share, highest.get(key, 0.0))
    keys = sorted(highest, key=lambda key: -highest[key])
    points = [[(float(keys.index(key)), share) for key, share in m.importance.shares.items()] for m in found.members]
    ticks = {float(place): name for place, name in enumerate(short_names(keys).values())}
    return Panel("", "share of the importance", _grouped(found, points), ticks=ticks)


def _curves(found: Comparison) -> list[Series]:
    return _grouped(found, [each.curve for each in found.members], line=2)


def _rates(found: Comparison) -> list[Series]:
    points = [[(p.at, p.loss) for rate in each.rates.groups for p in rate.points] for each in found.members]
    return _grouped(found, points)


def _costs(found: Comparison) -> list[Series]:
    priced = [{one.cost: one.trades for one in each.tradeoffs.each} for each in found.members]
    return _grouped(found, [[(t.cost, t.loss) for t in each.get("trainable_params", [])] for each in priced])


def _grouped(
    found: Comparison, points: list[list[tuple[float, float]]], line: float = 0.0, step: bool = False
) -> list[Series]:
    series = []
    for place, (member, own) in enumerate(zip(found.members, points, strict=True)):
        colour, symbol = COLOURS[place % len(COLOURS)], SYMBOLS[place % len(SYMBOLS)]
        x, y = [at for at, _ in own], [loss for _, loss in own]
        if own:
            series.append(Series(member.study, [*x], [*y], colour, symbol, 7, line, step, [member.study] * len(own)))
    return series


def _panel(x: str, y: str, series: list[Series], log_x: bool = False) -> Panel:
    losses = [loss for one in series for loss in one.y if loss is not None]
    return Panel(x, y, series, frame(losses, []) if losses else None, log_x)
