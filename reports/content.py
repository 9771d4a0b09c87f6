"""Everything a report says, computed once; HTML, Markdown, CSV and JSON only write it down."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from reports import answer, curves, heatmap, importance, reproduce, tables
from reports.study import Study, searched_keys, short_names


@dataclass
class Content:
    """`names`: searched key → the short name it goes by in tables and figures."""

    study: str
    state: str
    created: str
    names: dict[str, str]
    answer: answer.Answer
    leaderboard: list[tables.LeaderRow]
    history: curves.History
    importance: importance.Importance
    heatmap: heatmap.Heatmap
    curves: curves.Curves
    failures: list[tables.Failure]
    reproduce: reproduce.Reproduce

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
        tables.leaderboard(study),
        curves.history(study),
        importance.compute(study),
        heatmap.compute(study),
        curves.curves(study),
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
