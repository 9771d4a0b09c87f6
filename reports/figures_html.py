"""The figures for the HTML page, as plotly's own JSON.

Colours are written as `var(--best)` and the like: the page puts in those of its light or dark palette, so one
figure serves both. Plain dicts instead of `plotly.graph_objects` keep a study of 500 trials fast.
"""

from html import escape
from typing import Any

from reports.content import Content
from reports.curves import Curve, Curves, History
from reports.importance import Importance
from reports.panels import DASHES
from reports.panels_html import figures as panel_figures
from reports.panels_html import plain_layout
from reports.wording import LABELS

Figure = dict[str, Any]


def figures(content: Content) -> dict[str, Figure]:
    """Name → figure, of those that can be drawn."""
    drawn: dict[str, Figure] = {}
    if not content.history.why_not:
        drawn["history"] = history(content.history)
    if not content.importance.why_not:
        drawn["importance"] = importance(content.importance, content.names)
    if not content.curves.why_not:
        drawn["curves"] = curves(content.curves)
    return drawn | panel_figures(content.panels())


def history(shown: History) -> Figure:
    traces = [
        _points(shown, "complete", "circle", "completed"),
        _points(shown, "pruned", "x-thin", "pruned"),
        {
            "type": "scatter", "mode": "lines", "name": "best so far", "hoverinfo": "skip",
            "x": [number for number, _ in shown.best], "y": [best for _, best in shown.best],
            "line": {"shape": "hv", "color": "var(--best)", "width": 2.5},
        },
    ]  # fmt: skip
    last = max(point.number for point in shown.points)
    lines = [_reference(name, level, last) for name, level in shown.references.items()]
    layout = plain_layout("trial number", "best_val_loss (nats per token)", shown.frame)
    layout["xaxis"] |= {"range": [-0.6, last + 0.6], "tickformat": "d"}
    return {"data": [trace for trace in [*traces, *lines] if trace["x"]], "layout": layout}


def _points(shown: History, state: str, symbol: str, name: str) -> Figure:
    points = [point for point in shown.points if point.state == state]
    size = 8 if len(shown.points) < 100 else 5
    line = {"width": 2, "color": "var(--trial)"} if symbol == "x-thin" else {"width": 0}
    return {
        "type": "scatter", "mode": "markers", "name": name,
        "x": [point.number for point in points], "y": [point.loss for point in points],
        "text": [escape(point.name) for point in points],
        "hovertemplate": "%{text}<br>%{y:.4f}<extra></extra>",
        "marker": {"symbol": symbol, "size": size, "color": "var(--trial)", "line": line},
    }  # fmt: skip


def _reference(kind: str, level: float, last: float) -> Figure:
    return {
        "type": "scatter", "mode": "lines", "name": LABELS[kind],
        "x": [-0.6, last + 0.6], "y": [level, level],
        "hovertemplate": f"{LABELS[kind]}<br>%{{y:.4f}}<extra></extra>",
        "line": {"color": f"var(--{kind})", "width": 1.5, "dash": DASHES[kind]},
    }  # fmt: skip


def importance(found: Importance, names: dict[str, str]) -> Figure:
    items = sorted(found.shares.items(), key=lambda item: item[1])
    layout = plain_layout("share of the importance", "", None, height=90 + 38 * len(items))
    layout["xaxis"] |= {"range": [0, 1.12 * items[-1][1]]}
    bars = {
        "type": "bar", "orientation": "h", "x": [share for _, share in items],
        "y": [escape(names.get(key, key)) for key, _ in items], "width": 0.55,
        "marker": {"color": "var(--best)"},
        "text": [f"{share:.2f}" for _, share in items], "textposition": "outside", "cliponaxis": False,
        "hoverinfo": "skip",
    }  # fmt: skip
    return {"data": [bars], "layout": layout}


def curves(found: Curves) -> Figure:
    others = [line for line in found.lines if line.kind == "trial"]
    traces = [_others(others), _pruned_ends(found.lines)]
    traces += [_highlighted(line) for kind in ("default", "best") for line in found.lines if line.kind == kind]
    traces += [_highlighted(found.training)] if found.training else []
    last = max(step for line in found.lines for step in line.steps)
    if found.base is not None:
        traces.append(_reference("base", found.base, last) | {"x": [0, last]})
    layout = plain_layout("optimizer step", "loss (nats per token)", found.frame)
    return {"data": [trace for trace in traces if trace["x"]], "layout": layout}


def _others(lines: list[Curve]) -> Figure:
    """All other trials in one trace, with gaps between them: hundreds of traces would crawl."""
    x: list[float | None] = []
    y: list[float | None] = []
    text: list[str] = []
    for line in lines:
        x += [*line.steps, None]
        y += [*(round(number, 5) for number in line.losses), None]
        text += [escape(line.name)] * (len(line.steps) + 1)
    return {
        "type": "scatter", "mode": "lines", "name": "other trials", "x": x, "y": y, "text": text,
        "hovertemplate": "%{text}<br>%{y:.4f}<extra></extra>", "opacity": 0.7,
        "line": {"color": "var(--trial)", "width": 1.2},
    }  # fmt: skip


def _pruned_ends(lines: list[Curve]) -> Figure:
    pruned = [line for line in lines if line.state == "pruned"]
    return {
        "type": "scatter", "mode": "markers", "name": "pruned here", "hoverinfo": "skip",
        "x": [line.steps[-1] for line in pruned], "y": [line.losses[-1] for line in pruned],
        "marker": {"symbol": "x-thin", "size": 8, "line": {"width": 2, "color": "var(--trial)"}},
    }  # fmt: skip


def _highlighted(line: Curve) -> Figure:
    name = escape(line.label)
    style = {"color": f"var(--{line.colour})", "width": 3 if line.kind == "best" else 2}
    return {
        "type": "scatter", "mode": "lines+markers", "name": name, "x": line.steps, "y": line.losses,
        "line": style | ({"dash": DASHES[line.kind]} if line.kind in DASHES else {}),
        "marker": {"size": 5},
        "hovertemplate": f"{name}<br>%{{y:.4f}}<extra></extra>",
    }  # fmt: skip
