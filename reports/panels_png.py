"""Panels as one PNG, two in a row."""

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from reports.palette import LIGHT
from reports.panels import WIDE, Panel, Series

MARKS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "cross": "P", "triangle-down": "v",
    "pentagon": "p", "star": "*",
}  # fmt: skip
STYLES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


def grid(panels: list[Panel]) -> bytes:
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(8, 1 + 3 * rows), layout="constrained", facecolor=LIGHT["page"])
    for place, panel in enumerate(panels, 1):
        _draw(plain_axes(figure.add_subplot(rows, columns, place)), panel)
    return png(figure)


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
