"""The figures of a comparison: a colour and a mark for each study, or a heat map for each."""

from dataclasses import replace

from reports import adapter, comparison_settings, heatmap
from reports.comparison import Comparison
from reports.comparison_series import LOSS, colour, grouped, panel
from reports.panels import Figures, Panel, Tiles


def panels(found: Comparison) -> Figures:
    """Name → panels, of what can be drawn."""
    curves = grouped(found, [each.curve for each in found.members], line=2)
    drawn = {
        "best": [_best(found, "trials", "trials ended"), _best(found, "steps", "optimizer steps in all")],
        "importance": [comparison_settings.importance(found)],
        "rates": [comparison_settings.rates(found)],
        "slices": comparison_settings.slices(found),
        "tradeoffs": [_costs(found)],
        "curves": [panel("optimizer step", "validation loss (nats per token)", curves)],
        "parallel": comparison_settings.all_at_once(found),
        "noise": [_noise(found)],
    }
    maps = {"heatmap": _maps(found, "heatmap"), "rate_map": _maps(found, "rate_map"), "adapter": _adapters(found)}
    lines = {name: each for name, each in drawn.items() if any(one.series for one in each)}
    return lines | {name: each for name, each in maps.items() if each}


def _best(found: Comparison, unit: str, x: str) -> Panel:
    points = [[(float(getattr(one, unit)), one.loss) for one in each.best] for each in found.members]
    return panel(x, LOSS, grouped(found, points, line=2, step=True))


def _costs(found: Comparison) -> Panel:
    priced = [{one.cost: one.trades for one in each.tradeoffs.each} for each in found.members]
    points = [[(trade.cost, trade.loss) for trade in each.get("trainable_params", [])] for each in priced]
    return panel("trainable parameters", LOSS, grouped(found, points), log_x=True)


def _noise(found: Comparison) -> Panel:
    """A place for each trial that was trained again, with the loss of each seed."""
    points: list[list[tuple[float, float]]] = []
    names: list[str] = []
    for member in found.members:
        points.append([])
        for seeds in member.answer.finalists:
            points[-1] += [(float(len(names)), loss) for loss in seeds.losses.values()]
            names.append(seeds.name)
    drawn = panel("", LOSS, grouped(found, points))
    drawn.ticks = {float(place): name for place, name in enumerate(names)}
    return drawn


def _maps(found: Comparison, name: str) -> list[Tiles]:
    maps = {place: getattr(member, name) for place, member in enumerate(found.members)}
    return [_titled(found, heatmap.tiles(one), place) for place, one in maps.items() if not one.why_not]


def _adapters(found: Comparison) -> list[Tiles]:
    facts = {place: member.adapter for place, member in enumerate(found.members) if not member.adapter.why_not}
    return [_titled(found, *each) for each in zip(adapter.tiles([*facts.values()]), facts, strict=True)]


def _titled(found: Comparison, tiles: Tiles, place: int) -> Tiles:
    return replace(tiles, title=found.members[place].study, colour=colour(place))
