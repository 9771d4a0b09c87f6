"""The cells of the heat map, to the digit."""

import pytest

from reports import heatmap
from reports.study import load
from tests.reports.helpers import AXES, RATIO


def test_cells_hold_median_and_count(make_study):
    choices = {"key": RATIO, "kind": "categorical", "choices": [0.5, 1.0, 2.0, 4.0, 8.0]}
    found = heatmap.compute(load(make_study(axes=[AXES[0], choices])), heatmap.RATIO)
    assert (found.ranks, found.columns) == (["4", "8", "16", "32"], ["0.5", "2", "4"])
    best = found.cells[3][1]
    assert (best.count, best.median, best.best, best.winner) == (2, 1.78125, 1.75, True)
    assert found.cells[0][0].count == 0 and found.cells[0][0].median is None
    assert (found.total, found.empty) == (8, 5)
    drawn = heatmap.tiles(found)
    assert drawn.scale == (2.25, 1.78125) and drawn.values[3][1] == 1.78125 and drawn.texts[3][1] == "1.7812\nn=2 ★"
    assert (drawn.values[0][0], drawn.texts[0][0]) == (None, "–")
    assert drawn.is_dark(1.78125) and not drawn.is_dark(2.25)


def test_a_continuous_ratio_is_binned_by_its_logarithm(study_folder):
    found = heatmap.compute(load(study_folder), heatmap.RATIO)
    assert found.columns == ["0.5–1", "1–2", "2–4"]
    assert [[cell.count for cell in row] for row in found.cells] == [
        [0, 0, 1],
        [0, 0, 2],
        [1, 0, 2],
        [0, 0, 2],
    ]
    assert found.cells[2][2].median == 1.9375


def test_more_trials_make_finer_bins(make_study):
    rows = [(8, 0.5 * 2 ** (i / 16), 1e-4, 2.0, "complete", None) for i in range(65)]
    found = heatmap.compute(load(make_study(trials=rows)), heatmap.RATIO)
    assert len(found.columns) == heatmap.MAX_VALUES
    assert found.columns[0] == "0.5–0.71" and found.columns[-1] == "5.7–8"
    assert found.total == 65


@pytest.mark.parametrize(
    "rows, told",
    [
        ([], "no trial has completed"),
        ([(8, 2.0, 1e-4, 2.0, "complete", None)] * 2, "all completed trials have rank 8 and α/r 2"),
    ],
)
def test_why_it_is_not_drawn(make_study, rows, told):
    assert told in heatmap.compute(load(make_study(trials=rows)), heatmap.RATIO).why_not


def test_a_ratio_that_follows_from_the_rank_is_not_drawn(make_study):
    study = load(make_study(trials=[(8, 2.5, 1e-4, 2.0, "complete", None), (32, 0.625, 1e-4, 1.9, "complete", None)]))
    assert heatmap.compute(study, heatmap.RATIO).why_not is None, "it was searched"
    study.record.axes = AXES[:1]
    for trial in study.searched:
        del trial.params[RATIO]
    assert heatmap.compute(study, heatmap.RATIO).why_not == "Not drawn: α/r was not searched, each rank has one."


def test_trials_without_adapters_are_left_out(make_study):
    study = load(make_study())
    before = heatmap.compute(study, heatmap.RATIO)
    study.winner.config["train_type"] = "full"
    after = heatmap.compute(study, heatmap.RATIO)
    assert after.total == before.total - 1
    assert not any(cell.winner for row in after.cells for cell in row)


def test_maps_of_several_studies_have_the_same_cells_and_colours(make_study):
    """Each alone has other bins, and its own best loss at the dark end."""
    row = (1e-4, 1.9, "complete", None)
    short = [(16, 1.0, *row), (64, 16.0, 1e-4, 3.0, "complete", None)]
    studies = [load(make_study("long")), load(make_study("short", trials=short)), load(make_study("none", trials=[]))]
    long, short, none = heatmap.together(studies, heatmap.RATIO)
    assert long.ranks == short.ranks == ["4", "8", "16", "32", "64"] and long.columns == short.columns
    assert long.scale == short.scale == (3.0, 1.78125)
    assert (long.total, short.total, none.why_not) == (8, 2, "Not drawn: no trial has completed.")
    assert long.cells[3][long.columns.index("1.2–2.8")].winner and short.cells[2][0].winner
    alone = heatmap.compute(studies[1], heatmap.RATIO)
    assert alone.scale == (3.0, 1.9) and alone.columns != short.columns and alone.ranks == ["16", "64"]
