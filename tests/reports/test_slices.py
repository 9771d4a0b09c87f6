"""The loss by one setting, by learning rate at each rank, and through all settings."""

import math

from reports import slices
from reports.study import load
from tests.reports.helpers import RANK, RATE, RATIO


def test_learning_rates_by_rank(study_folder):
    found = slices.rates(load(study_folder))
    assert {rate.rank: len(rate.points) for rate in found.ranks} == {4: 1, 8: 2, 16: 3, 32: 2}
    assert found.best == {"4": 6e-4, "8": 2e-4, "16": 4e-4, "32": 5e-4}
    assert "rank 8: 0.0002" in found.caption


def test_the_valley_holds_the_best_of_each_part(make_study):
    """Six parts from 1e-4 to 6.4e-3, each twice as high as the one before."""
    rates = [1e-4, 1.5e-4, 2.5e-4, 6.4e-3]
    losses = [3.0, 2.0, 2.5, 4.0]
    rows = [(8, 2.0, rate, loss, "complete", None) for rate, loss in zip(rates, losses, strict=True)]
    (rate,) = slices.rates(load(make_study(trials=rows))).ranks
    assert [(point.at, point.loss) for point in rate.valley] == [(1.5e-4, 2.0), (2.5e-4, 2.5), (6.4e-3, 4.0)]


def test_too_few_rates_are_not_drawn(make_study):
    rows = [(8, 2.0, 1e-4, 2.0, "complete", None), (8, 2.0, 2e-4, 2.1, "complete", None)]
    assert "fewer than three" in slices.rates(load(make_study(trials=rows))).why_not


def test_slices_place_choices_by_their_order(study_folder):
    rank, ratio, rate = slices.slices(load(study_folder)).each
    assert (rank.key, ratio.key, rate.key) == (RANK, RATIO, RATE)
    assert rank.ticks == {0.0: "4", 1.0: "8", 2.0: "16", 3.0: "32"} and not rank.log
    assert (rank.points[0].name, rank.points[0].at, rank.points[0].loss) == ("trial-0003", 3.0, 1.75)
    assert (ratio.ticks, ratio.log, ratio.points[0].at) == ({}, True, 2.0)


def test_a_setting_that_did_not_vary_is_left_out(make_study):
    rows = [(8, 2.0, 1e-4, 2.0, "complete", None), (8, 2.0, 2e-4, 2.1, "complete", None)]
    assert [each.key for each in slices.slices(load(make_study(trials=rows))).each] == [RATE]


def test_parallel_lines_run_from_lowest_to_highest(study_folder):
    found = slices.slices(load(study_folder))
    (panel,) = slices.parallel(found, {RANK: "rank"}, "trial-0003")
    others, quarter, winner = panel.series
    assert (len(others.x) // 4, len(quarter.x) // 4) == (6, 1)
    rate = round(math.log(5e-4 / 1e-4) / math.log(8e-4 / 1e-4), 4)
    assert winner.y == [1.0, round(2 / 3, 4), rate, None]
    assert panel.ticks[0.0] == "rank\n4 – 32"
