"""The ends of the space: when the winner lies there, and where to look next."""

import pytest

from reports.edges import edges
from reports.study import load
from sweeps.space import make_job
from tests.reports.helpers import RANK, RATE, RATIO

WORSE = (16, 3.0, 2e-4, 3.0, "complete", None)


def test_the_winner_of_the_recorded_study(study_folder):
    (found,) = edges(load(study_folder))
    assert (found.key, found.value, found.side, found.bound, found.to) == (RANK, 32, "highest", 32, 64)
    assert found.override == f"{RANK}=4,8,16,32,64"


def test_a_winner_inside_is_at_no_end(make_study):
    assert edges(load(make_study(trials=[(8, 2.0, 1e-4, 2.0, "complete", None), WORSE]))) == []


def test_a_single_trial_lies_where_it_was_drawn(make_study):
    at_end = (32, 2.0, 1e-4, 2.0, "complete", None)
    assert [each.key for each in edges(load(make_study(trials=[at_end, WORSE])))] == [RANK]
    assert edges(load(make_study("single", trials=[at_end]))) == []


@pytest.mark.parametrize(
    "row, axis, to, override",
    [
        ((8, 7.5, 1e-4), {"key": RATIO, "kind": "float", "low": 0.5, "high": 8.0, "log": True}, 16.0,
         f"{RATIO}=tag(log,interval(0.5,16.0))"),
        ((8, 2.0, 1e-5), {"key": RATE, "kind": "float", "low": 1e-5, "high": 1e-3, "log": True}, 3.2e-06,
         f"{RATE}=tag(log,interval(3.2e-06,0.001))"),
        ((64, 2.0, 1e-4), {"key": RANK, "kind": "int", "low": 4, "high": 64, "step": 4}, 76, f"{RANK}=range(4,80,4)"),
        ((4, 2.0, 1e-4), {"key": RANK, "kind": "categorical", "choices": [4, 8, 12]}, 1, f"{RANK}=1,4,8,12"),
    ],
)  # fmt: skip
def test_where_to_look_next(make_study, row, axis, to, override):
    study = load(make_study(trials=[(*row, 2.0, "complete", None), WORSE], axes=[axis]))
    (found,) = edges(study)
    assert (found.to, found.override) == (to, override)
    axes = {each.key: each for each in make_job(["model=tiny", override]).axes}
    assert axes[axis["key"]].contains(to)


@pytest.mark.parametrize(
    "row, axis",
    [
        ((1, 2.0, 1e-4), {"key": RANK, "kind": "categorical", "choices": [1, 2, 4]}),
        ((8, 2.0, 1e-4), {"key": RANK, "kind": "categorical", "choices": [4, 8]}),
        ((8, 0.0, 1e-4), {"key": RATIO, "kind": "float", "low": 0.0, "high": 8.0}),
    ],
)
def test_no_advice_where_there_is_nothing_beyond(make_study, row, axis):
    """The lowest rank there is, one of two choices, and 0."""
    assert edges(load(make_study(trials=[(*row, 2.0, "complete", None), WORSE], axes=[axis]))) == []
