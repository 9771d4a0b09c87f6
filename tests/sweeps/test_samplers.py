"""Proposals are repeatable, also after a resume, and never the same twice."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sweeps.samplers import DistinctSampler, Distributions, cells, exhausted, grid

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
SAMPLERS = pytest.mark.parametrize("name", ["tpe", "random"])


def study_of(name: str, space: Distributions, seed: int = 0, storage: str | None = None) -> optuna.Study:
    options = {"n_startup_trials": 3} if name == "tpe" else {}
    sampler = DistinctSampler({"name": name, **options}, seed, space)
    return optuna.create_study(sampler=sampler, storage=storage, study_name="s", load_if_exists=True)


def asked(study: optuna.Study, space: Distributions, count: int) -> list[dict[str, Any]]:
    found = []
    for _ in range(count):
        trial = study.ask(space)
        found.append(trial.params)
        study.tell(trial, sum(value for value in trial.params.values()))
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


def test_running_trials_are_not_drawn_again() -> None:
    study = study_of("tpe", GRID)
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
