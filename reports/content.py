"""Everything a report says, computed once; HTML, Markdown, CSV and JSON only write it down."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from reports import (
    adapter,
    answer,
    curves,
    health,
    heatmap,
    importance,
    noise,
    parallel,
    reproduce,
    samples,
    slices,
    tables,
    tradeoffs,
)
from reports.heatmap import Heatmap
from reports.panels import Figures
from reports.study import Study, searched_keys, short_names


@dataclass
class Content:
    """`names`: searched key → the short name it goes by in tables and figures."""

    study: str
    state: str
    created: str
    names: dict[str, str]
    answer: answer.Answer
    health: health.Health
    leaderboard: list[tables.LeaderRow]
    history: curves.History
    importance: importance.Importance
    rates: slices.Rates
    slices: slices.Slices
    heatmap: Heatmap
    rate_map: Heatmap
    tradeoffs: tradeoffs.Tradeoffs
    curves: curves.Curves
    noise: noise.Noise
    adapter: adapter.AdapterFacts
    samples: samples.Samples
    failures: list[tables.Failure]
    reproduce: reproduce.Reproduce

    def panels(self) -> Figures:
        """Name → panels, of the figures that can be drawn."""
        winner = self.answer.winner.name if self.answer.winner else None
        found: Figures = {}
        if not self.rates.why_not:
            found["rates"] = slices.rate_panels(self.rates)
        if not self.slices.why_not:
            found["slices"] = slices.slice_panels(self.slices, self.names, winner)
        for name, cells in (("heatmap", self.heatmap), ("rate_map", self.rate_map)):
            if not cells.why_not:
                found[name] = [heatmap.tiles(cells)]
        if len(self.slices.each) > 1:
            found["parallel"] = parallel.panels(self.slices, self.names, winner)
        if not self.tradeoffs.why_not:
            found["tradeoffs"] = tradeoffs.panels(self.tradeoffs, winner)
        if not self.noise.why_not:
            found["noise"] = noise.panels(self.noise)
        if not self.adapter.why_not:
            found["adapter"] = adapter.tiles([self.adapter])
        return found

    def to_json(self) -> dict[str, Any]:
        """The numbers as plain JSON values. The learning curves stay out: `metrics.jsonl` has them."""
        return plain({name: part for name, part in asdict(self).items() if name != "curves"})


def compute(study: Study) -> Content:
    return Content(
        study.name,
        study.record.state,
        study.record.created,
        short_names(searched_keys(study)),
        answer.compute(study),
        health.compute(study),
        tables.leaderboard(study),
        curves.history(study),
        importance.compute(study),
        slices.rates(study),
        slices.slices(study),
        heatmap.compute(study, heatmap.RATIO),
        heatmap.compute(study, heatmap.RATE),
        tradeoffs.compute(study),
        curves.curves(study),
        noise.compute(study),
        adapter.compute(study),
        samples.load(study.folder),
        tables.failures(study),
        reproduce.reproduce(study.record),
    )


def plain(values: Any) -> Any:
    """`values` without NaN and infinities, which JSON does not have: null instead."""
    if isinstance(values, dict):
        return {str(key): plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
