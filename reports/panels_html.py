"""A panel as plotly's own JSON, in the colours of the palette by name."""

from html import escape
from typing import Any

from reports.panels import WIDE, Panel, Series

Figure = dict[str, Any]


def figures(panels: dict[str, list[Panel]]) -> dict[str, Figure]:
    """Each of several panels under a name gets a number."""
    return {f"{name}-{place}": _figure(panel) for name, each in panels.items() for place, panel in enumerate(each)}


def _figure(panel: Panel) -> Figure:
    layout = plain_layout(escape(panel.x), panel.y, panel.frame, height=360)
    if panel.log_x:
        layout["xaxis"] |= _log_axis(panel)
    if panel.ticks:
        texts = [escape(text).replace("\n", "<br>") for text in panel.ticks.values()]
        # Plotly hides a text that would leave the figure, as one may that is slanted.
        layout["xaxis"] |= {"tickvals": list(panel.ticks), "ticktext": texts, "autotickangles": [0, -90]}
        layout["xaxis"] |= {"range": [min(panel.ticks) - 0.4, max(panel.ticks) + 0.4]}
        layout["xaxis"]["showgrid"] = panel.hide_y
    if panel.hide_y:
        layout["yaxis"] |= {"showticklabels": False, "showgrid": False}
        layout["margin"] |= {"r": 45}
    hover = "%{text}" if panel.hide_y else "%{text}<br>%{y:.4f}" if panel.ticks else "%{text}<br>%{x:.4g}: %{y:.4f}"
    return {"data": [_trace(series, hover) for series in panel.series if series.x], "layout": layout}


def _log_axis(panel: Panel) -> Figure:
    """Numbers as d3 is to write those of this size, where there is room for them."""
    at = [x for series in panel.series for x in series.x if x is not None] or [1.0]
    form = "~s" if max(at) >= 1e4 else ".0e" if max(at) < 0.01 else "~g"
    return {"type": "log", "dtick": 1 if max(at) > WIDE * min(at) else "D2", "tickformat": form}


def _trace(series: Series, hover: str) -> Figure:
    shape = {"shape": "hv" if series.step else "linear", "dash": series.dash}
    modes = [*(["lines"] if series.line else []), *(["markers"] if series.symbol else [])]
    return {
        "type": "scatter", "mode": "+".join(modes), "name": escape(series.name), "showlegend": bool(series.name),
        "x": series.x, "y": series.y, "text": [escape(label) for label in series.labels],
        "hovertemplate": f"{hover}<extra></extra>",
        "line": {"color": f"var(--{series.colour})", "width": series.line} | shape,
        "marker": {"symbol": series.symbol, "size": series.size, "color": f"var(--{series.colour})"},
    }  # fmt: skip


def plain_layout(x: str, y: str, shown: tuple[float, float] | None, height: int = 400) -> Figure:
    axis = {"gridcolor": "var(--line)", "linecolor": "var(--line)", "zeroline": False, "automargin": True}
    return {
        "height": height, "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--ink)", "family": "system-ui, sans-serif", "size": 13},
        "hoverlabel": {"bgcolor": "var(--raised)", "font": {"color": "var(--ink)"}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": axis | {"title": {"text": x}},
        "yaxis": axis | {"title": {"text": y}} | ({"range": list(shown)} if shown else {}),
    }  # fmt: skip
