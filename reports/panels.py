"""A figure as data, which HTML and Markdown draw each in their way: points and lines, or a heat map."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Series:
    """`colour`: a name of the palette. `line`: joined by one, where a None leaves a gap; with `step` it stays level
    until the next point. `labels`: of the points, for who points at them. `dash`: solid, dash, dot or dashdot."""

    name: str
    x: list[float | None]
    y: list[float | None]
    colour: str
    symbol: str | None = "circle"  # None: no marks
    size: float = 8
    line: float = 0.0  # its width
    step: bool = False
    labels: list[str] = field(default_factory=list)
    dash: str = "solid"


@dataclass
class Panel:
    """`ticks`: position → text, where the x axis is no scale of numbers. `frame`: both ends of the y axis."""

    x: str
    y: str
    series: list[Series]
    frame: tuple[float, float] | None = None
    log_x: bool = False
    ticks: dict[float, str] = field(default_factory=dict)
    hide_y: bool = False


@dataclass
class Tiles:
    """A heat map. `values[i][j]` belongs to row `i`, from below, and column `j`; where there is none the tile is
    hatched, or empty if there are no texts. `scale`: the values of the pale and of the dark end of its colours.
    `texts`: in the tiles. `labels`: of the values, for who points at them. `colour`: of the title."""

    x: str
    y: str
    columns: list[str]
    rows: list[str]
    values: list[list[float | None]]
    scale: tuple[float, float]
    unit: str
    labels: list[list[str]]
    texts: list[list[str]] = field(default_factory=list)
    title: str = ""
    colour: str = "ink"

    def is_dark(self, value: float) -> bool:
        """Whether a tile of this value wants light text."""
        pale, dark = self.scale
        return pale == dark or (value - pale) / (dark - pale) > DARK_FROM


Figures = dict[str, Sequence[Panel | Tiles]]  # by name


DARK_FROM = 0.6  # of the way from the pale end of the colours to the dark one
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "pentagon", "star")
WIDE = 300  # times its lower end: a log scale with room for powers of ten only
DASHES = {"base": "dash", "default": "dot", "training": "dashdot"}  # of lines that are not a trial's own
COLOURS = tuple(f"group{i}" for i in range(len(SYMBOLS)))
