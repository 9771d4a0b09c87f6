"""Panels as one PNG, two in a row; heat maps, whose tiles carry text, below each other."""

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator

from reports.palette import LIGHT
from reports.panels import WIDE, Panel, Series, Tiles

MARKS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "cross": "P", "triangle-down": "v",
    "pentagon": "p", "star": "*",
}  # fmt: skip
STYLES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


def grid(panels: Sequence[Panel | Tiles]) -> bytes:
    tiled = sum(_height(panel) for panel in panels if isinstance(panel, Tiles))
    columns = 1 if tiled else min(2, len(panels))
    rows = -(-len(panels) // columns)
    # `Figure` without pyplot keeps no state between reports and needs no display.
    figure = Figure(figsize=(8, tiled or 1 + 3 * rows), layout="constrained", facecolor=LIGHT["page"])
    for place, panel in enumerate(panels, 1):
        axes = plain_axes(figure.add_subplot(rows, columns, place))
        _tiles(axes, panel) if isinstance(panel, Tiles) else _draw(axes, panel)
    return png(figure)


def _height(found: Tiles) -> float:
    return 1.3 + (0.62 if found.texts else 0.35) * len(found.rows)


def plain_axes(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LIGHT["line"])
    axes.tick_params(colors=LIGHT["soft"], length=0)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(LIGHT["soft"])
    axes.yaxis.label.set_color(LIGHT["soft"])
    return axes


def png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=140)
    return stream.getvalue()


def _draw(axes: Axes, panel: Panel) -> None:
    for series in panel.series:
        if series.x:
            _series(axes, series)
    if panel.log_x:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < WIDE * low else (1,)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    if panel.frame:
        axes.set_ylim(panel.frame)
    if panel.ticks:
        axes.set_xticks(list(panel.ticks), list(panel.ticks.values()))
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.yaxis.set_tick_params(labelleft=not panel.hide_y)
    axes.grid(axis="x" if panel.hide_y else "y", color=LIGHT["line"], linewidth=0.8)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=7)


def _series(axes: Axes, series: Series) -> None:
    # matplotlib wants NaN where a line has a gap.
    x, y = ([float("nan") if each is None else each for each in values] for values in (series.x, series.y))
    style, drawn = STYLES[series.dash] if series.line else "none", "steps-post" if series.step else "default"
    axes.plot(
        x, y, color=LIGHT[series.colour], linestyle=style, drawstyle=drawn, linewidth=series.line,
        marker=MARKS.get(series.symbol or ""), markersize=series.size * 0.7, label=series.name or None,
    )  # fmt: skip


def _tiles(axes: Axes, found: Tiles) -> None:
    pale, dark = found.scale
    colours = [LIGHT["heat_poor"], LIGHT["heat_good"]][:: 1 if pale <= dark else -1]
    shades = LinearSegmentedColormap.from_list("tiles", colours)
    values = [[float("nan") if value is None else value for value in row] for row in found.values]
    drawn = axes.imshow(values, shades, aspect="auto", origin="lower", vmin=min(pale, dark), vmax=max(pale, dark))
    for i, row in enumerate(found.texts):
        for j, text in enumerate(row):
            _tile(axes, found, i, j, text)
    every = range(0, len(found.columns), max(1, len(found.columns) // 12))
    axes.set_xticks(every, [found.columns[place] for place in every])
    axes.set_yticks(range(len(found.rows)), found.rows)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(found.x)
    axes.set_ylabel(found.y)
    axes.set_title(found.title, loc="left", fontsize=10, fontweight="bold", color=LIGHT[found.colour])
    if not found.texts:  # else the values stand in the tiles
        axes.figure.colorbar(drawn, ax=axes, label=found.unit)


def _tile(axes: Axes, found: Tiles, i: int, j: int, text: str) -> None:
    value = found.values[i][j]
    colour = "page" if value is not None and found.is_dark(value) else "ink"
    axes.text(j, i, text, ha="center", va="center", fontsize=9, color=LIGHT[colour])
    if value is None:
        place, ink = (j - 0.5, i - 0.5), LIGHT["line"]
        axes.add_patch(Rectangle(place, 1, 1, hatch="//", facecolor="none", edgecolor=ink, linewidth=0))
