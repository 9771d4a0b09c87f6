"""Importances are measured where they can be, and explained where not."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from reports import importance
from reports.study import load
from tests.reports.helpers import AXES, RANK, RATE, RATIO


def test_shares_add_up_and_name_method_and_count(study_folder):
    found = importance.compute(load(study_folder))
    assert set(found.shares) == {RANK, RATIO, RATE}
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.method.startswith("PED-ANOVA (Optuna ")
    assert (found.completed, found.best) == (8, 4)
    assert found.caution == "With 8 completed trials the order is a hint, not a finding."


def test_the_setting_that_decides_comes_first(make_study):
    rows = [(4, 0.5 + (i * 7 % 30) / 4, 10 ** (-5 + i / 15), 1 + i / 10, "complete", None) for i in range(30)]
    found = importance.compute(load(make_study(trials=rows)))
    assert next(iter(found.shares)) == RATE and found.caution is None


@pytest.mark.parametrize(
    "more, told",
    [
        ({"axes": []}, "no setting was searched"),
        ({"axes": AXES[:1]}, f"only {RANK} was searched"),
        ({"trials": [(8, 2.0, 1e-4, 2.0, "complete", None)] * 3}, "3 trials completed, 4 are needed"),
        ({"trials": [(8, 2.0, 1e-4, 2.0, "complete", None)] * 6}, "have the same loss"),
        ({"trials": [(8, 20.0, 1e-4, i, "complete", None) for i in range(6)]}, "inside the present space"),
    ],
)
def test_why_there_are_none(make_study, more, told):
    found = importance.compute(load(make_study(**more)))
    assert told in found.why_not and not found.shares


def test_axes_become_distributions():
    keys = {"key": "k", "kind": "categorical", "choices": [["q", "v"], None]}
    assert importance.distribution(keys) == CategoricalDistribution(['["q","v"]', None])
    layers = {"key": "n", "kind": "int", "choices": None, "low": 1, "high": 9, "step": 2, "log": False}
    assert importance.distribution(layers) == IntDistribution(1, 9, step=2)
    assert importance.distribution(AXES[1]) == FloatDistribution(0.5, 8.0, log=True)


def test_trials_outside_the_space_are_left_out_and_counted(make_study):
    rows = [(8 if i else 64, 2.0 + i / 4, 1e-4 * (i + 1), 2 + i / 8, "complete", None) for i in range(7)]
    found = importance.compute(load(make_study(trials=rows)))
    assert (found.completed, found.left_out) == (6, 1)
