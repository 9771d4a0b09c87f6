"""A panel as plotly's own JSON, in the colours of the palette by name."""

from html import escape
from typing import Any

from reports.panels import Panel, Series

Figure = dict[str, Any]


def figures(panels: dict[str, list[Panel]]) -> dict[str, Figure]:
    """Each of several panels under a name gets a number."""
    return {f"{name}-{place}": _figure(panel) for name, each in panels.items() for place, panel in enumerate(each)}


def _figure(panel: Panel) -> Figure:
    layout = plain_layout(escape(panel.x), panel.y, panel.frame, height=360)
    if panel.log_x:
        layout["xaxis"] |= {"type": "log", "dtick": "D2", "tickformat": _form(panel)}
    if panel.ticks:
        texts = [escape(text).replace("\n", "<br>") for text in panel.ticks.values()]
        layout["xaxis"] |= {"tickvals": list(panel.ticks), "ticktext": texts}
        layout["xaxis"] |= {"range": [min(panel.ticks) - 0.4, max(panel.ticks) + 0.4]}
        layout["xaxis"]["showgrid"] = panel.hide_y
    if panel.hide_y:
        layout["yaxis"] |= {"showticklabels": False, "showgrid": False}
    hover = "%{text}" if panel.hide_y else "%{text}<br>%{y:.4f}" if panel.ticks else "%{text}<br>%{x:.4g}: %{y:.4f}"
    return {"data": [_trace(series, hover) for series in panel.series if series.x], "layout": layout}


def _form(panel: Panel) -> str:
    """How d3 is to write numbers of this size."""
    highest = max((x for series in panel.series for x in series.x if x is not None), default=1.0)
    return "~s" if highest >= 1e4 else ".0e" if highest < 0.01 else "~g"


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
