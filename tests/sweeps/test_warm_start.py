"""A search that learns from the trials of an earlier one, which stay that one's."""

from statistics import fmean

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from sweeps.samplers import DistinctSampler, Distributions
from tests.sweeps.helpers import Place, quick, write_data

SPACE: Distributions = {"a": FloatDistribution(0, 1)}


def first_draws(values: list[float]) -> list[float]:
    """Where a study's first trials are drawn after earlier ones in which `a` had these values, the loss 1 - a."""
    earlier = [create_trial(params={"a": a}, distributions=SPACE, values=[1 - a]) for a in values]
    study = optuna.create_study(sampler=DistinctSampler({"name": "tpe"}, 0, SPACE, earlier=earlier))
    drawn = [study.ask(SPACE).params["a"] for _ in range(8)]
    assert [trial.number for trial in study.trials] == list(range(8))
    return drawn


def test_the_first_trials_are_drawn_where_earlier_ones_were_good() -> None:
    spread = [0.05 * i for i in range(21)]
    assert fmean(first_draws(spread)) > 0.8 > fmean(first_draws([]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """With a study named old, none of whose six trials is stopped early."""
    place = Place(tmp_path_factory.mktemp("warm"))
    assert quick(place, "n_trials=6", "study=old", "search.pruner.n_startup_trials=9") == 0
    return place


def test_a_search(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        "n_trials=3",
        "search.pruner.n_startup_trials=9",
        "search.sampler.n_startup_trials=3",
        "trainer.slots=1",
    ]
    assert quick(place, *settings, "study=cold") == 0
    capsys.readouterr()
    # A narrower space, and other values of what is no axis any more: not every trial could be one of this search.
    ranks = [trial.params["lora_parameters.rank"] for trial in place.trials("old")]
    assert quick(place, *settings, "study=warm", "search.warm_start=[old]", "lora_parameters.rank=2") == 0
    line = f"Warm start: the sampler also learns from {ranks.count(2)} of 6 completed trials of old."
    assert 0 < ranks.count(2) < 6
    assert line in capsys.readouterr().out and line in place.record("warm").notes
    told = optuna.load_study(study_name="warm", storage=f"sqlite:///{place.root}/optuna.db").trials
    assert [trial.number for trial in told] == [0, 1, 2] and len(place.trials("warm")) == 3
    rates = [[t.params["optimizer.learning_rate"] for t in place.trials(name)] for name in ("cold", "warm")]
    assert set(rates[0]).isdisjoint(rates[1])
    # What is kept, and what becomes of the winner, changes no loss.
    unlike = "keep_state=true", "fuse=true", "fuse_quantization=8bit", "study=kept"
    assert quick(place, *settings, *unlike, "search.warm_start=[old]", "lora_parameters.rank=2") == 0
    assert line in capsys.readouterr().out
    # Other studies to learn from would be another search.
    assert quick(place, *settings, "study=warm", "lora_parameters.rank=2") == 2
    assert 'search.warm_start: ["old"] → []' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["search.warm_start=[olf]"], "No study 'olf' in"),
        (["search.warm_start=[old]", "study=old"], "old is this study itself"),
        (["search.warm_start=[old]", "trainer.iters=16"], "could be one of this search: trainer.iters: 8 → 16"),
        (["search.warm_start=[old]", "lora_parameters.rank=8"], "could be one of this search"),
        (["search.warm_start=[old]", "search/sampler=random"], "which learns from no trial"),
        (["search.warm_start=[old]", "search/sampler=nsga2"], "which keeps a state"),
        (["search.warm_start=[../old]"], "search.warm_start is '../old'"),
        (["search.warm_start=[old,old]"], "expected each study once"),
        (["search.warm_start=old"], "search.warm_start is one value: expected a list"),
    ],
)
def test_what_is_refused(place: Place, more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in (place.root / "outputs").iterdir()}
    assert quick(place, "search.pruner.n_startup_trials=9", "study=new", *more) == 2
    printed = capsys.readouterr().err
    assert said in printed and len(printed.splitlines()) <= 3
    assert {path.name for path in (place.root / "outputs").iterdir()} == before


def test_other_data_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(place.data, rows=13)
    assert quick(place, "study=new", "search.warm_start=[old]") == 2
    assert "old has other contents of the data" in capsys.readouterr().err
    write_data(place.data)
