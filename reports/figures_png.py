"""The figures for Markdown, as PNG files. Drawn from the same numbers as those of the HTML page."""

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.content import Content
from reports.curves import Curve
from reports.palette import LIGHT
from reports.panels import DASHES
from reports.panels_png import STYLES, grid, plain_axes, png
from reports.wording import LABELS


def figures(content: Content) -> dict[str, bytes]:
    """Name → PNG, of those that can be drawn."""
    drawers: dict[str, Callable[[Axes, Content], None]] = {
        "history": _history,
        "importance": _importance,
        "curves": _curves,
    }
    drawn = {
        name: _png(draw, content, _height(name, content))
        for name, draw in drawers.items()
        if not getattr(content, name).why_not
    }
    return drawn | {name: grid(panels) for name, panels in content.panels().items()}


def _height(name: str, content: Content) -> float:
    return 1.0 + 0.45 * len(content.importance.shares) if name == "importance" else 4.2


def _png(draw: Callable[[Axes, Content], None], content: Content, height: float) -> bytes:
    figure = Figure(figsize=(8, height), layout="constrained", facecolor=LIGHT["page"])
    draw(plain_axes(figure.add_subplot()), content)
    return png(figure)


def _history(axes: Axes, content: Content) -> None:
    shown = content.history
    for state, marker, label in (("complete", "o", "completed"), ("pruned", "x", "pruned")):
        points = [point for point in shown.points if point.state == state]
        if points:
            x, y = [point.number for point in points], [point.loss for point in points]
            axes.scatter(x, y, s=28, marker=marker, color=LIGHT["trial"], label=label)
    if shown.best:
        best = list(zip(*shown.best, strict=True))
        axes.step(*best, where="post", color=LIGHT["best"], linewidth=2.2, label="best so far")
    for kind, level in shown.references.items():
        axes.axhline(level, color=LIGHT[kind], linestyle=STYLES[DASHES[kind]], linewidth=1.3, label=LABELS[kind])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, "trial number", "best_val_loss (nats per token)", shown.frame)


def _importance(axes: Axes, content: Content) -> None:
    items = sorted(content.importance.shares.items(), key=lambda item: item[1])
    bars = axes.barh(
        [content.names.get(key, key) for key, _ in items],
        [share for _, share in items],
        height=0.55,
        color=LIGHT["best"],
    )
    axes.bar_label(bars, fmt="%.2f", padding=4, color=LIGHT["ink"])
    axes.tick_params(axis="y", colors=LIGHT["ink"])
    axes.set_xlabel("share of the importance")


def _curves(axes: Axes, content: Content) -> None:
    found = content.curves
    for line in sorted(found.lines, key=lambda line: ("trial", "default", "best").index(line.kind)):
        _curve(axes, line)
    if found.training:
        _curve(axes, found.training)
    if found.base is not None:
        axes.axhline(
            found.base, color=LIGHT["base"], linestyle=STYLES[DASHES["base"]], linewidth=1.3, label=LABELS["base"]
        )
    _finish(axes, "optimizer step", "loss (nats per token)", found.frame)


def _curve(axes: Axes, line: Curve) -> None:
    width = {"best": 2.4, "default": 1.8, "training": 1.8}.get(line.kind, 0.9)
    style = STYLES[DASHES.get(line.kind, "solid")]
    label, colour = line.label or None, LIGHT[line.colour]
    axes.plot(line.steps, line.losses, color=colour, linewidth=width, linestyle=style, label=label)
    if line.state == "pruned":
        axes.plot(line.steps[-1], line.losses[-1], marker="x", markersize=6, color=LIGHT["trial"])


def _finish(axes: Axes, x: str, y: str, shown: tuple[float, float]) -> None:
    axes.set_ylim(shown)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y", color=LIGHT["line"], linewidth=0.8)
    legend = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "ncols": 5, "frameon": False, "fontsize": 9}
    if axes.get_legend_handles_labels()[0]:  # a study that has just begun may have none
        axes.legend(**legend)
