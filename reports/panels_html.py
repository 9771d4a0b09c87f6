"""A panel or a heat map as plotly's own JSON, in the colours of the palette by name."""

from html import escape
from typing import Any

from reports.panels import WIDE, Figures, Panel, Series, Tiles

Figure = dict[str, Any]


def figures(panels: Figures) -> dict[str, Figure]:
    """Each of several panels under a name gets a number."""
    return {f"{name}-{place}": _drawn(panel) for name, each in panels.items() for place, panel in enumerate(each)}


def _drawn(panel: Panel | Tiles) -> Figure:
    return _tiles(panel) if isinstance(panel, Tiles) else _figure(panel)


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


def _tiles(found: Tiles) -> Figure:
    pale, dark = found.scale
    colours = ["var(--heat_poor)", "var(--heat_good)"][:: 1 if pale <= dark else -1]
    trace = {
        "type": "heatmap", "x": list(map(escape, found.columns)), "y": list(map(escape, found.rows)), "z": found.values,
        "zmin": min(pale, dark), "zmax": max(pale, dark), "colorscale": [[0, colours[0]], [1, colours[1]]],
        "text": found.labels, "hoverongaps": False,
        "hovertemplate": f"{found.y} %{{y}}, {found.x} %{{x}}<br>%{{text}}<extra></extra>",
        "showscale": not found.texts,  # the values stand in the tiles
        "colorbar": {"title": {"text": found.unit}, "thickness": 10, "outlinewidth": 0, "nticks": 5},
    }  # fmt: skip
    layout = plain_layout(found.x, found.y, None, height=130 + (62 if found.texts else 30) * len(found.rows))
    layout["xaxis"] |= {"type": "category", "showgrid": False}
    layout["yaxis"] |= {"type": "category", "showgrid": False}
    if found.title:
        font = {"size": 15, "weight": "bold", "color": f"var(--{found.colour})"}
        layout["title"] = {"text": escape(found.title), "x": 0, "y": 0.99, "yanchor": "top", "font": font}
        layout["margin"]["t"] = 40
    if found.texts:
        trace |= {"xgap": 3, "ygap": 3}
        places = [(i, j) for i in range(len(found.rows)) for j in range(len(found.columns))]
        layout["annotations"] = [_note(found, i, j) for i, j in places]
        layout["shapes"] = [_hatch(j, i) for i, j in places if found.values[i][j] is None]
    return {"data": [trace], "layout": layout}


def _note(found: Tiles, i: int, j: int) -> Figure:
    """The text of a tile, light on the dark ones: plotly's own choice is hard to read in the middle."""
    value = found.values[i][j]
    colour = "soft" if value is None else "page" if found.is_dark(value) else "ink"
    text = found.texts[i][j].replace("\n", "<br>")
    return {"text": text, "showarrow": False, "font": {"color": f"var(--{colour})"}, "x": j, "y": i}


def _hatch(j: int, i: int) -> Figure:
    """Slanted lines over the tile at column `j` of row `i`."""
    strokes = [(-0.46, -0.2, -0.2, -0.46), (-0.46, 0.13, 0.13, -0.46), (-0.46, 0.46, 0.46, -0.46)]
    strokes += [(-0.13, 0.46, 0.46, -0.13), (0.2, 0.46, 0.46, 0.2)]
    path = " ".join(f"M{j + a:g},{i + b:g} L{j + c:g},{i + d:g}" for a, b, c, d in strokes)
    return {"type": "path", "path": path, "line": {"color": "var(--line)", "width": 1}, "layer": "below"}
