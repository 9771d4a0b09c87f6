"""Who is stopped, and that it depends on losses alone: not on the order in which trials report."""

import itertools
import math
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweeps.axes import Axis
from sweeps.config import SearchConfig, SweepConfig
from sweeps.pruners import Halving, Hyperband, Median, Pruner, make_pruner
from sweeps.study import Evaluation, Study

RATE = Axis("optimizer.learning_rate", "float", low=1e-5, high=1e-3, log=True)
LOSSES = [2.0, 1.0, 4.0, 3.0, 6.0, 5.0]


def trial(number: int, curve: dict[int, float], state: TrialState = TrialState.RUNNING) -> FrozenTrial:
    value = 1.0 if state == TrialState.COMPLETE else None
    made = create_trial(state=state, value=value, intermediate_values=curve)
    made.number = number
    return made


def stopped(pruner: Pruner, curves: list[dict[int, float]], step: int) -> list[int]:
    """The numbers of those stopped at `step`, where each trial has reported its curve."""
    trials = [trial(number, curve) for number, curve in enumerate(curves)]
    return [each.number for each in trials if step in each.intermediate_values and pruner.beaten(each, step, trials)]


def test_median_stops_the_worse_half_of_trials_that_start_together() -> None:
    assert stopped(Median(5, 0, 1), [{10: loss} for loss in LOSSES], 10) == [2, 4, 5]
    assert stopped(Median(6, 0, 1), [{10: loss} for loss in LOSSES], 10) == []  # five others each


def test_median_counts_trials_however_they_ended() -> None:
    ended = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    trials = [trial(number, {10: 1.0 + number}, state) for number, state in enumerate(ended)]
    behind, level = trial(3, {10: 2.5}), trial(4, {10: 2.0})
    assert Median(3, 0, 1).beaten(behind, 10, [*trials, behind])
    assert not Median(3, 0, 1).beaten(level, 10, [*trials, level])


def test_median_compares_the_best_loss_so_far() -> None:
    curves = [{10: 1.0, 20: 2.0}, {10: 3.0, 20: 1.5}, {10: 3.0, 20: 1.8}]
    assert stopped(Median(2, 0, 1), curves, 20) == [2]


@pytest.mark.parametrize("pruner", [Median(1, 0, 1), Halving(10, 2)])
def test_a_loss_of_minus_infinity_beats_nobody(pruner: Pruner) -> None:
    assert stopped(pruner, [{10: -math.inf}, {10: math.nan}, {10: 1.0}], 10) == []
    assert stopped(pruner, [{10: 0.5}, {10: math.nan}, {10: 1.0}], 10) == [2]


def test_median_waits_and_skips_steps() -> None:
    curves = [{10: 1.0, 20: 1.0, 30: 1.0}, {10: 2.0, 20: 2.0, 30: 2.0}]
    assert [stopped(Median(1, 20, 1), curves, step) for step in (10, 20, 30)] == [[], [1], [1]]
    assert [stopped(Median(1, 10, 20), curves, step) for step in (10, 20, 30)] == [[1], [], [1]]


def test_a_trial_that_is_run_again_is_judged_as_the_first_time() -> None:
    curves = [{10: 1.0, 20: 2.0}, {10: 2.0, 20: 0.5}]
    assert stopped(Median(1, 0, 1), curves, 10) == [1]
    assert stopped(Halving(10, 2), curves, 10) == [1]


def test_halving_keeps_the_best_of_each_rung() -> None:
    curves = [{5: 9.0 - loss, 10: loss, 15: 9.0 - loss, 30: loss} for loss in LOSSES]
    halving = Halving(10, 3)
    assert [stopped(halving, curves, step) for step in (5, 10, 15, 30)] == [[], [2, 3, 4, 5], [], [2, 3, 4, 5]]
    assert stopped(halving, curves[:2], 10) == [0]  # the best of a few goes on


def test_a_rung_between_evaluations_is_reached_by_the_next() -> None:
    curves = [{8: 2.0, 16: 1.0, 24: 2.0}, {8: 1.0, 16: 2.0, 24: 1.0}]
    assert [stopped(Halving(10, 3), curves, step) for step in (8, 16, 24)] == [[], [1], []]


def test_halving_leaves_a_diverged_trial_to_itself() -> None:
    assert stopped(Halving(10, 2), [{10: math.nan}, {10: 1.0}, {10: 2.0}], 10) == [2]


def test_hyperband_brackets() -> None:
    hyperband = Hyperband(min_resource=10, reduction_factor=3, max_resource=100)
    assert [bracket.min_resource for bracket in hyperband.brackets] == [10, 30, 90]
    numbers = [hyperband.bracket(number) for number in range(180)]
    shares = [numbers.count(bracket) / 180 * sum(hyperband.shares) for bracket in range(3)]
    assert shares == pytest.approx(hyperband.shares, abs=0.2)
    assert len(set(numbers[:6])) == 3  # spread from the start


def test_brackets_of_hyperband_do_not_meet() -> None:
    hyperband = Hyperband(min_resource=10, reduction_factor=3, max_resource=100)
    # The first trial of each bracket is the only one there, so nobody is behind.
    firsts = [[hyperband.bracket(number) for number in range(20)].index(bracket) for bracket in range(3)]
    trials = [trial(number, {10: float(number), 30: float(number), 90: float(number)}) for number in firsts]
    assert not any(hyperband.beaten(each, step, trials) for each in trials for step in (10, 30, 90))
    mates = [number for number in range(20) if hyperband.bracket(number) == 0][:2]
    pair = [trial(number, {10: float(number)}) for number in mates]
    assert [hyperband.beaten(each, 10, pair) for each in pair] == [False, True]


def test_by_name() -> None:
    found = [
        make_pruner({"name": "none"}, 100),
        make_pruner({"name": "median", "n_startup_trials": 2, "n_warmup_steps": 30, "interval_steps": 1}, 100),
        make_pruner({"name": "asha", "min_resource": 10, "reduction_factor": 3}, 100),
        make_pruner({"name": "hyperband", "min_resource": 10, "reduction_factor": 3}, 100),
    ]
    assert [type(pruner).__name__ for pruner in found] == ["Nobody", "Median", "Halving", "Hyperband"]
    assert stopped(found[0], [{10: loss} for loss in LOSSES], 10) == []


PRUNERS = [
    {"name": "median", "n_startup_trials": 1, "n_warmup_steps": 0, "interval_steps": 1},
    {"name": "asha", "min_resource": 10, "reduction_factor": 2},
    {"name": "hyperband", "min_resource": 10, "reduction_factor": 2},
]


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda settings: settings["name"])
def test_verdicts_do_not_depend_on_the_order_of_slots(pruner: dict, tmp_path: Path) -> None:
    rows = [Evaluation(number, 10, loss) for number, loss in enumerate([2.0, 1.0, 4.0, 3.0])]
    verdicts = []
    for index, order in enumerate(itertools.permutations(rows)):
        config = SweepConfig(storage=f"sqlite:///{tmp_path}/optuna.db", search=SearchConfig(pruner=pruner))
        study = Study(f"s{index}", config, [RATE], {}, steps=40)
        for _ in rows:
            study.ask()
        verdicts.append(study.judge(list(order)))
        # Another moment would be another set of rivals: all had reported before the first was judged.
        assert all(10 in each.intermediate_values for each in study.optuna.get_trials())
    assert verdicts[0] and all(verdict == verdicts[0] for verdict in verdicts)
    assert [LOSSES[number] for number in verdicts[0]] == sorted(LOSSES[number] for number in verdicts[0])


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
