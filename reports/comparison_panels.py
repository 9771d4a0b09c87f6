"""The figures of a comparison: a colour and a mark for each study."""

from reports.comparison import Comparison
from reports.curves import frame
from reports.panels import COLOURS, SYMBOLS, Panel, Series
from reports.slices import Slice
from reports.study import short_names


def panels(found: Comparison) -> dict[str, list[Panel]]:
    """Name → panels, of what can be drawn: best so far, the winners' curves, settings, seeds, costs."""
    y = "best_val_loss (nats per token)"
    drawn = {
        "best": [_best(found, "trials", "trials ended", y), _best(found, "steps", "optimizer steps in all", y)],
        "importance": [_importance(found)],
        "curves": [_panel("optimizer step", "validation loss (nats per token)", _curves(found))],
        "rates": [_panel("learning rate", y, _rates(found), log_x=True)],
        "slices": _slices(found, y),
        "noise": [_noise(found, y)],
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


def _slices(found: Comparison, y: str) -> list[Panel]:
    """One for each setting that a study has searched, two where it is a choice in one and a range in another."""
    each = [{one.key: one for one in member.slices.each} for member in found.members]
    names = short_names(list(dict.fromkeys(key for own in each for key in own)))
    panels = []
    for key, name in names.items():
        for is_choice in (False, True):
            own = [one if (one := by_key.get(key)) and bool(one.ticks) == is_choice else None for by_key in each]
            if any(own):
                panels.append(_slice(found, own, name, y))
    return panels


def _slice(found: Comparison, own: list[Slice | None], name: str, y: str) -> Panel:
    there = [one for one in own if one]
    texts = _in_order(list(dict.fromkeys(text for one in there for text in one.ticks.values())))

    def points(one: Slice | None) -> list[tuple[float, float]]:
        if one is None:
            return []
        return [(float(texts.index(one.ticks[p.at])) if one.ticks else p.at, p.loss) for p in one.points]

    panel = _panel(name, y, _grouped(found, [points(one) for one in own]), any(one.log for one in there))
    panel.ticks = {float(place): text for place, text in enumerate(texts)}
    return panel


def _in_order(texts: list[str]) -> list[str]:
    """Numbers by size; else as they come."""
    try:
        return sorted(texts, key=float)
    except ValueError:
        return texts


def _noise(found: Comparison, y: str) -> Panel:
    """A place for each trial that was trained again, with the loss of each seed."""
    points: list[list[tuple[float, float]]] = []
    names: list[str] = []
    for member in found.members:
        points.append([])
        for seeds in member.answer.finalists:
            points[-1] += [(float(len(names)), loss) for loss in seeds.losses.values()]
            names.append(seeds.name)
    panel = _panel("", y, _grouped(found, points))
    panel.ticks = {float(place): name for place, name in enumerate(names)}
    return panel


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
