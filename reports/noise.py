"""Noise: the losses of every trial that was trained again, seed by seed, beside base model and default settings."""

from dataclasses import dataclass, field

from reports.curves import frame, outside
from reports.panels import DASHES, Panel, Series
from reports.seeds import Seeds
from reports.study import Study, value
from reports.wording import LABELS, loss, plural

APART = 0.1  # between two seeds of a trial, along the axis
HALF = 0.25  # of the line that marks a mean


@dataclass
class Noise:
    """`finalists`: best first, the losses of each in the order of its seeds. `frame`: both ends of the axis."""

    finalists: list[Seeds] = field(default_factory=list)
    references: dict[str, float] = field(default_factory=dict)  # base, default
    frame: tuple[float, float] = (0.0, 1.0)
    why_not: str | None = None

    @property
    def caption(self) -> str:
        means = "; ".join(mean_and_spread(each) for each in self.finalists)
        out = outside(self.frame, [], self.references)
        return f"Mean ± standard deviation of the sample: {means}. {out}".strip()


def mean_and_spread(seeds: Seeds) -> str:
    spread = "" if seeds.sd is None else f" ± {loss(seeds.sd)}"
    return f"{seeds.name} {loss(seeds.mean)}{spread} (n = {seeds.n})"


def compute(study: Study) -> Noise:
    finalists = study.confirmed
    if not finalists:
        done, planned = study.confirming
        ended = f"{done} of {plural(planned, 'training')} with other seeds have ended"
        return Noise(why_not=f"Not drawn: {ended if planned else 'every setting was trained with one seed'}.")
    rows = {"base": value(study.base), "default": value(study.default)}
    references = {name: own for name, own in rows.items() if own is not None}
    drawn = [y for each in finalists for y in (*each.losses.values(), *_spread(each))]
    return Noise(finalists, references, frame(drawn, list(references.values())))


def _spread(seeds: Seeds) -> list[float]:
    return [] if seeds.sd is None else [seeds.mean - seeds.sd, seeds.mean + seeds.sd]


def panels(found: Noise) -> list[Panel]:
    places = list(enumerate(found.finalists))
    series = [
        *(_reference(name, level, len(places)) for name, level in found.references.items() if _inside(found, level)),
        *([_pairs(places)] if len(places) > 1 else []),
        _means(places),
        _seeds("other seeds", found, 1, None, "circle"),
        _seeds("its own seed", found, 0, 1, "diamond"),
    ]
    ticks = {float(place): each.name for place, each in places}
    return [Panel("", "best_val_loss (nats per token)", series, found.frame, ticks=ticks)]


def _inside(found: Noise, level: float) -> bool:
    return found.frame[0] <= level <= found.frame[1]


def _reference(name: str, level: float, count: int) -> Series:
    ends, label = [-0.4, count - 0.6], LABELS[name]
    return Series(label, [*ends], [level] * 2, name, None, 0, 1.5, labels=[label] * 2, dash=DASHES[name])


def _pairs(places: list[tuple[int, Seeds]]) -> Series:
    """A line for each seed, from trial to trial: where the lines are parallel, it moves all losses alike."""
    x: list[float | None] = []
    y: list[float | None] = []
    labels: list[str] = []
    for seed in sorted({seed for _, each in places for seed in each.losses}):
        points = [(_across(place, each, seed), each.losses[seed]) for place, each in places if seed in each.losses]
        x, y = [*x, *(at for at, _ in points), None], [*y, *(own for _, own in points), None]
        labels += [f"seed {seed}"] * (len(points) + 1)
    return Series("same seed", x, y, "trial", None, 0, 1.0, labels=labels)


def _across(place: int, each: Seeds, seed: int) -> float:
    """Where a loss stands: side by side, in the order of the seeds."""
    return place + (seed - max(each.losses) / 2) * APART


def _means(places: list[tuple[int, Seeds]]) -> Series:
    """A cross for each trial: its mean across, its spread upright."""
    x: list[float | None] = []
    y: list[float | None] = []
    labels: list[str] = []
    for place, each in places:
        for ends, heights in (((place - HALF, place + HALF), [each.mean] * 2), ((place, place), _spread(each))):
            if heights:
                x, y, labels = [*x, *ends, None], [*y, *heights, None], [*labels, *[each.name] * 3]
    return Series("mean ± standard deviation", x, y, "soft", None, 0, 2.0, labels=labels)


def _seeds(name: str, found: Noise, first: int, last: int | None, symbol: str) -> Series:
    points = [
        (_across(place, each, seed), own, f"{each.name}, {name}")
        for place, each in enumerate(found.finalists)
        for seed, own in list(each.losses.items())[first:last]
    ]
    x, y, labels = [at for at, *_ in points], [own for _, own, _ in points], [label for *_, label in points]
    return Series(name, [*x], [*y], "best", symbol, 9, labels=labels)
