"""The cells of the heat map, to the digit."""

import pytest

from reports import heatmap
from reports.study import load


def test_cells_hold_median_and_count(study_folder):
    found = heatmap.compute(load(study_folder))
    assert (found.ranks, found.ratios) == (["4", "8", "16", "32"], ["0.5", "2", "4"])
    best = found.cells[3][1]
    assert (best.count, best.median, best.best, best.winner) == (2, 1.78125, 1.75, True)
    assert found.cells[0][0].count == 0 and found.cells[0][0].median is None
    assert (found.total, found.empty) == (8, 5)


def test_shade_runs_from_best_to_poorest(study_folder):
    found = heatmap.compute(load(study_folder))
    assert found.shade(found.cells[3][1]) == 0.0
    assert found.shade(found.cells[1][1]) == 1.0


def test_a_continuous_ratio_is_binned_by_its_logarithm(make_study):
    rows = [(8, 0.5 * 2 ** (i / 4), 1e-4, 2.0, "complete", None) for i in range(17)]
    found = heatmap.compute(load(make_study(trials=rows)))
    assert len(found.ratios) == heatmap.MAX_VALUES
    assert found.ratios[0] == "0.5–0.71" and found.ratios[-1] == "5.7–8"
    assert found.total == 17


@pytest.mark.parametrize(
    "rows, told",
    [
        ([], "no trial has completed"),
        ([(8, 2.0, 1e-4, 2.0, "complete", None)] * 2, "all completed trials have rank 8 and α/r 2"),
    ],
)
def test_why_it_is_not_drawn(make_study, rows, told):
    assert told in heatmap.compute(load(make_study(trials=rows))).why_not
