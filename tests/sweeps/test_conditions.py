"""Axes that exist only where another one has a certain value: what is refused, and what a search makes of them."""

from pathlib import Path

import optuna
import pytest

from lora_core.errors import UserError
from reports.study import load
from reports.tables import leaderboard
from sweeps.space import make_job
from tests.sweeps.helpers import Place, quick

METHOD = ("train_type", "lora_parameters.scaling", "lora_parameters.rank")
SPACE = ["model=tiny", "search=quick", "lora_parameters.rank=2,4", "num_layers=1,2", "optimizer.learning_rate=1e-2"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (['search.when={num_layer:"lora_parameters.rank=4"}'], "num_layer is no axis of this search. Did you mean num"),
        (['search.when={num_layers:"lora_parameters.ran=4"}'], "lora_parameters.ran is no axis of this search. Did"),
        (['search.when={num_layers:"lora_parameters.rank=3"}'], "3 does not lie in the axis lora_parameters.rank=2,4"),
        (['search.when={num_layers:"num_layers=1"}'], "goes in a circle: num_layers when num_layers"),
        (
            ["optimizer.learning_rate=interval(1e-3,1e-2)", 'search.when={num_layers:"optimizer.learning_rate=1e-2"}'],
            "hardly ever has one certain value",
        ),
        (['search.when={num_layers:"lora_parameters.rank=4"}', "search/sampler=nsga2"], "learn nothing of it"),
        (
            ['search.when={num_layers:"lora_parameters.rank=4"}', "search.enqueue=[{num_layers:1}]"],
            "num_layers exists only when lora_parameters.rank=4",
        ),
    ],
)
def test_what_is_refused(more: list[str], said: str) -> None:
    words = [word for word in SPACE if word.partition("=")[0] not in {each.partition("=")[0] for each in more}]
    with pytest.raises(UserError) as error:
        make_job([*words, *more])
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("fixed", "left"),
    [
        ("lora_parameters.rank=8", ["train_type", "lora_parameters.scaling", "optimizer.learning_rate"]),
        ("train_type=lora", ["lora_parameters.scaling", "lora_parameters.rank", "optimizer.learning_rate"]),
        ("train_type=dora", ["lora_parameters.rank", "optimizer.learning_rate"]),
        ("train_type=full", ["optimizer.learning_rate"]),
    ],
)
def test_one_value_settles_what_hangs_on_it(fixed: str, left: list[str]) -> None:
    job = make_job(["model=tiny", "search=methods_full", fixed])
    assert [axis.key for axis in job.axes] == left
    scaling = {"lora_parameters.scaling"} if fixed == "lora_parameters.rank=8" else set()
    assert job.conditions.keys() == (job.config_for({}).search.when or {}).keys() == scaling


def test_what_the_user_has_said_of_axes_stays() -> None:
    words = ["model=tiny", "search=methods_full"]
    job = make_job([*words, "train_type=dora", "lora_parameters.scaling=direct,alpha_over_r"])
    assert "lora_parameters.scaling" in [axis.key for axis in job.axes]
    with pytest.raises(UserError, match="rank is no axis"):
        make_job([*words, "lora_parameters.rank=8", 'search.when={lora_parameters.rank:"train_type=lora"}'])


def test_an_axis_is_checked_where_it_exists() -> None:
    """At its default, rank 8, α = 20 would contradict a ratio."""
    words = ["model=tiny", "search=quick", "optimizer.learning_rate=1e-2", "lora_parameters.rank=4,8", "num_layers=2"]
    words += ["lora_parameters.scale=null,20", "lora_parameters.scale_ratio=2.0,3.0"]
    with pytest.raises(UserError, match="scale"):
        make_job(words)
    job = make_job([*words, 'search.when={lora_parameters.scale_ratio:"lora_parameters.scale=null"}'])
    assert job.config_at("lora_parameters.scale_ratio", 3.0).lora_parameters.ratio == 3.0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def search(place: Place, when: str) -> int:
    method = ["search/sampler=grid", "search/pruner=none", "trainer.slots=1"]
    return quick(place, *SPACE, f"search.when={when}", *method)


def test_a_search(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(place, '{num_layers:"lora_parameters.rank=4"}') == 0
    printed = capsys.readouterr().out
    assert "Axis num_layers=1,2 when lora_parameters.rank=4" in printed
    assert "all of its 3 settings were tried" in printed
    rank, layers = "lora_parameters.rank", "num_layers"
    points = [{rank: 2}, {rank: 4, layers: 1}, {rank: 4, layers: 2}]
    assert [trial.params for trial in place.trials()] == points
    told = optuna.load_study(study_name="s", storage=f"sqlite:///{place.root}/optuna.db").trials
    assert [trial.params for trial in told] == points
    default = place.trial("default").config["num_layers"]
    assert [trial.config["num_layers"] for trial in place.trials()] == [default, 1, 2]

    rows = {row.name: row for row in leaderboard(load(place.folder()))}
    assert [rows[f"trial-000{number}"].setting(layers) for number in range(3)] == ["–", "1", "2"]
    assert rows["default"].setting(layers) == str(default)

    assert search(place, '{num_layers:"lora_parameters.rank=2"}') == 2
    said = capsys.readouterr().err
    assert 'search.when.num_layers: "lora_parameters.rank=4" → "lora_parameters.rank=2"' in said


@pytest.mark.slow
def test_four_methods_in_one_study(place: Place) -> None:
    grid = ["search=methods_full", "search/sampler=grid", "optimizer.learning_rate=1e-2"]
    grid += ["lora_parameters.rank=choice(2)", "trainer.iters=4"]
    words = [*grid, "num_layers=2", "trainer.slots=2", "n_trials=9", "search/pruner=none", "search.confirm.k=0"]
    assert quick(place, *words) == 0
    found = {tuple(t.params.get(key) for key in METHOD): t for t in place.trials()}
    assert set(found) == {
        ("lora", "alpha_over_r", 2), ("lora", "alpha_over_sqrt_r", 2), ("dora", None, 2), ("full", None, None),
    }  # fmt: skip
    assert {trial.state for trial in found.values()} == {"complete"}
    assert len({trial.value for trial in found.values()}) == 4
    rows = [row.setting("train_type") for row in leaderboard(load(place.folder())) if row.name.startswith("trial")]
    assert [rows.count(method) for method in ("lora", "dora", "full")] == [2, 1, 1]
