"""Proposals are repeatable, also after a resume, and never the same twice."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sweeps.conditions import Condition, Conditions, present
from sweeps.samplers import DistinctSampler, Distributions, cells, exhausted, grid
from tests.sweeps.helpers import Place, quick

optuna.logging.set_verbosity(optuna.logging.ERROR)
MIXED: Distributions = {
    "rate": FloatDistribution(1e-5, 1e-3, log=True),
    "rank": CategoricalDistribution([4, 8, 16]),
    "layers": IntDistribution(1, 4),
}
GRID: Distributions = {
    "rank": CategoricalDistribution([4, 8, 16]),
    "dropout": FloatDistribution(0.1, 0.3, step=0.1),
    "layers": IntDistribution(2, 6, step=2),
}
LISTS: Distributions = {"rank": CategoricalDistribution([4, 8]), "layers": CategoricalDistribution([1, "all"])}
OPTIONS: dict[str, dict[str, Any]] = {
    "tpe": {"n_startup_trials": 3}, "random": {}, "qmc": {}, "cmaes": {}, "gp": {"n_startup_trials": 3},
    "nsga2": {"population_size": 3},
}  # fmt: skip
NAMES = [pytest.param(name, marks=pytest.mark.peft if name == "gp" else ()) for name in OPTIONS]  # gp needs PyTorch
SAMPLERS = pytest.mark.parametrize("name", NAMES)


def study_of(name: str, space: Distributions, seed: int = 0, storage: str | None = None) -> optuna.Study:
    sampler = DistinctSampler({"name": name, **OPTIONS.get(name, {})}, seed, space)
    return optuna.create_study(sampler=sampler, storage=storage, study_name="s", load_if_exists=True)


def asked(study: optuna.Study, space: Distributions, count: int) -> list[dict[str, Any]]:
    found = []
    for _ in range(count):
        trial = study.ask(space)
        found.append(trial.params)
        study.tell(trial, sum(value for value in trial.params.values() if not isinstance(value, str)))
    return found


@SAMPLERS
def test_repeatable(name: str) -> None:
    first = asked(study_of(name, MIXED), MIXED, 10)
    assert asked(study_of(name, MIXED), MIXED, 10) == first
    assert asked(study_of(name, MIXED, seed=1), MIXED, 10) != first


@SAMPLERS
def test_a_resumed_study_goes_on_as_an_undisturbed_one(name: str, tmp_path: Path) -> None:
    undisturbed = asked(study_of(name, MIXED), MIXED, 8)
    url = f"sqlite:///{tmp_path}/optuna.db"
    first = asked(study_of(name, MIXED, storage=url), MIXED, 5)
    code = (
        "import json; from tests.sweeps.test_samplers import MIXED, asked, study_of; "
        f"print(json.dumps(asked(study_of({name!r}, MIXED, storage={url!r}), MIXED, 3)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if name == "gp":  # its fits repeat to the last digits only
        assert [list(point.values()) for point in json.loads(done.stdout)] == [
            pytest.approx(list(point.values())) for point in undisturbed[5:]
        ]
    else:
        assert first + json.loads(done.stdout) == undisturbed


@SAMPLERS
def test_a_grid_is_walked_once(name: str) -> None:
    study = study_of(name, GRID)
    assert cells(GRID) == 27
    points = asked(study, GRID, 26)
    assert not exhausted(GRID, study.trials)
    points += asked(study, GRID, 1)
    assert exhausted(GRID, study.trials)
    rounded = {(point["rank"], round(point["dropout"], 6), point["layers"]) for point in points}
    assert len(rounded) == 27


def test_grid_takes_every_point_in_the_order_written() -> None:
    points = asked(study_of("grid", GRID), GRID, 27)
    assert points == list(grid(GRID))
    assert [tuple(point.values()) for point in points[:4]] == [(4, 0.1, 2), (4, 0.1, 4), (4, 0.1, 6), (4, 0.2, 2)]


@SAMPLERS
def test_a_space_of_lists_is_exhausted_too(name: str) -> None:
    points = asked(study_of(name, LISTS), LISTS, 4)
    assert len({tuple(point.values()) for point in points}) == 4


@pytest.mark.parametrize("name", [each for each in NAMES if each.values[0] in ("tpe", "cmaes", "gp", "nsga2")])
def test_what_learns_finds_lower_values_than_what_does_not(name: str) -> None:
    space: Distributions = {"a": FloatDistribution(0, 1), "b": FloatDistribution(0, 1), "c": FloatDistribution(0, 1)}
    found = [sorted(sum(point.values()) for point in asked(study_of(s, space), space, 45)) for s in (name, "random")]
    best = 1 if name == "gp" else 5  # once a Gaussian process repeats itself, the rest is drawn at random
    assert fmean(found[0][:best]) < 0.75 * fmean(found[1][:best])


def test_no_sampler_warns(capfd: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("tpe", "random", "qmc", "cmaes", "nsga2"):
            asked(study_of(name, MIXED), MIXED, 8)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["grid", "tpe", "qmc", "nsga2"])
def test_running_trials_are_not_drawn_again(name: str) -> None:
    study = study_of(name, GRID)
    points = [study.ask(GRID).params for _ in range(27)]
    assert len({tuple(point.items()) for point in points}) == 27


def test_an_endless_space() -> None:
    assert cells(MIXED) is None
    assert list(grid(MIXED)) == []
    assert not exhausted(MIXED, study_of("random", MIXED).trials)


def test_choices_of_different_kinds_differ() -> None:
    space: Distributions = {"layers": CategoricalDistribution([1, "all", None])}
    study = study_of("random", space)
    points = [study.ask(space).params["layers"] for _ in range(3)]
    assert set(points) == {1, "all", None}


WHEN: Conditions = {"dropout": Condition("layers", (1, "all")), "rank": Condition("dropout", (0.1,))}
SOMETIMES: Distributions = {
    "rank": CategoricalDistribution([4, 8]),
    "dropout": CategoricalDistribution([0.1, 0.2, 0.3]),
    "layers": CategoricalDistribution([1, 2, "all"]),
}


def walked(name: str, space: Distributions, when: Conditions, count: int) -> list[dict[str, Any]]:
    """What trials get that take only the axes that exist; their values are the better, the lower the rank."""
    sampler = DistinctSampler({"name": name, **OPTIONS.get(name, {})}, 0, space, conditions=when)
    study = optuna.create_study(sampler=sampler)
    for _ in range(count):
        trial = study.ask()
        for key in trial.relative_params:
            trial._suggest(key, space[key])
        study.tell(trial, float(trial.params.get("rate", 1.0)))
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("name", ["tpe", "random", "grid", "qmc"])
def test_axes_that_exist_only_sometimes_make_fewer_points(name: str) -> None:
    # Layers 2, and for either of 1 and all: dropout 0.1 with two ranks, 0.2, 0.3.
    assert cells(SOMETIMES, WHEN) == 1 + 2 * (2 + 1 + 1)
    points = walked(name, SOMETIMES, WHEN, 9)
    assert len({tuple(sorted(point.items(), key=str)) for point in points}) == 9
    for point in points:
        assert ("dropout" in point) == (point["layers"] != 2)
        assert ("rank" in point) == (point.get("dropout") == 0.1)
    assert cells(SOMETIMES) == 18  # without the conditions


def test_tpe_learns_of_an_axis_that_exists_only_sometimes() -> None:
    space: Distributions = {"kind": CategoricalDistribution(["a", "b"]), "rate": FloatDistribution(0, 1)}
    when = {"rate": Condition("kind", ("a",))}
    found = [walked(name, space, when, 40) for name in ("tpe", "random")]
    learnt, drawn = ([point["rate"] for point in points[10:] if "rate" in point] for points in found)
    assert fmean(learnt) < 0.5 * fmean(drawn)


def test_what_is_present_follows_from_the_others() -> None:
    assert present({"layers": 2, "dropout": 0.1, "rank": 4}, WHEN) == {"layers": 2}
    assert present({"layers": 1, "dropout": 0.1, "rank": 4}, WHEN) == {"layers": 1, "dropout": 0.1, "rank": 4}
    assert present({"layers": True, "dropout": 0.1}, WHEN) == {"layers": True}  # not 1


@pytest.mark.peft
def test_a_search_with_a_gaussian_process(tmp_path: Path) -> None:
    place = Place(tmp_path)
    more = ["search/sampler=gp", "search.sampler.n_startup_trials=2", "n_trials=4", "trainer.slots=1"]
    assert quick(place, *more, "search/pruner=none") == 0
    assert [trial.state for trial in place.trials()] == ["complete"] * 4
