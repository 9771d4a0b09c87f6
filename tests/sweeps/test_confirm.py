"""After the search: the best are trained again with other seeds, and the test set is scored."""

import json
import random
from pathlib import Path
from typing import Any

import optuna
import pytest

from lora_core.records import load_metrics, save_trial
from reports import answer, samples, sentences
from reports.study import Study, load
from sweeps import confirm
from sweeps.cli import main
from sweeps.config import ConfirmConfig
from sweeps.connect import open_client
from sweeps.display import Display
from sweeps.links import trials_filter
from tests.sweeps.helpers import Place, quick
from tests.sweeps.test_search import mlflow_runs

CONFIRM = [
    "n_trials=4",
    "search.pruner.n_startup_trials=9",
    "trainer.slots=1",
    "search.confirm.k=2",
    "search.confirm.repeats=2",
]


def write_test_rows(place: Place, noise: int | None = None) -> None:
    """A test set like the other splits; with `noise`, letters in its place."""
    draw = random.Random(noise)
    lines = [{"prompt": f"{2000 + i}+1=", "completion": f"{2001 + i}."} for i in range(4)]
    if noise is not None:
        lines = [{"prompt": "?", "completion": "".join(draw.choices("#%&@~^", k=6))} for _ in lines]
    (place.data / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Four trials, of which the best two were trained twice more; with a test set."""
    place = Place(tmp_path_factory.mktemp("confirmed"))
    write_test_rows(place)
    assert quick(place, *CONFIRM, "tracking.samples=3") == 0
    return place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    write_test_rows(place)
    return place


def study(place: Place) -> Study:
    return load(place.folder())


def repeats(place: Place) -> list[str]:
    return sorted(trial.name for trial in study(place).trials if trial.role == "confirm")


def test_the_best_are_trained_again(confirmed: Place) -> None:
    best = study(confirmed).completed[:2]
    assert repeats(confirmed) == sorted(f"confirm-{trial.number:04d}-{r}" for trial in best for r in (1, 2))
    for trial in best:
        runs = [trial, *(confirmed.trial(f"confirm-{trial.number:04d}-{r}") for r in (1, 2))]
        assert [(run.repeat, run.state, run.step) for run in runs] == [(r, "complete", 8) for r in range(3)]
        assert all(run.config == trial.config and run.params == trial.params for run in runs)
        curves = [load_metrics(confirmed.folder() / run.name) for run in runs]
        assert len({curve[0]["val_loss"] for curve in curves}) == 1  # the base model
        for key in ("train_loss", "val_loss"):
            assert len({curve[-1][key] for curve in curves}) == 3
        assert len({run.adapter_sha256 for run in runs}) == 3


def test_they_are_no_trials_of_the_search(confirmed: Place) -> None:
    assert [trial.number for trial in confirmed.trials()] == list(range(4))
    told = optuna.load_study(study_name="s", storage=f"sqlite:///{confirmed.root}/optuna.db")
    assert len(told.trials) == 4
    assert confirmed.record().n_trials == 4


def test_the_answer_is_that_of_the_records(confirmed: Place) -> None:
    found = answer.compute(study(confirmed))
    for each in found.finalists:
        number = int(each.name[-4:])
        names = [each.name, *(f"confirm-{number:04d}-{r}" for r in (1, 2))]
        assert list(each.losses.values()) == [confirmed.trial(name).value for name in names]
    assert found.winner is not None
    assert found.winner.loss == min(each.mean for each in found.finalists)
    assert found.adapter == confirmed.trial(found.winner.name).adapter
    assert len(found.leads) == 1 and found.leads[0].beyond_noise is not None


def test_samples_are_answered_by_those_that_are_compared(confirmed: Place) -> None:
    found, winner = samples.load(confirmed.folder()), study(confirmed).winner
    assert winner is not None and list(found.adapters) == ["base", "default", winner.name]
    assert [(row.prompt, row.expected) for row in found.rows] == [(f"{2000 + i}+1=", f"{2001 + i}.") for i in range(3)]
    answers = [[row.answers[name] for row in found.rows] for name in found.adapters]
    assert all(answers[0]) and answers[0] != answers[2]


@pytest.mark.slow
def test_samples_that_are_not_wanted_any_more_go(place: Place) -> None:
    for wanted in (1, 0):
        assert quick(place, *CONFIRM, "n_trials=1", "search.confirm.k=0", f"tracking.samples={wanted}") == 0
        assert len(samples.load(place.folder()).rows) == wanted


def test_mlflow_shows_them(confirmed: Place) -> None:
    runs = mlflow_runs(confirmed)
    for name in repeats(confirmed):
        run = runs[name]
        assert (run.data.tags["sweep.role"], run.info.status) == ("confirm", "FINISHED")
        assert run.data.metrics["best_val_loss"] == confirmed.trial(name).value
    for name in ("base", "default", answer.compute(study(confirmed)).finalists[1].name):
        assert runs[name].data.metrics["test_loss"] == confirmed.trial(name).metrics["test_loss"]


def test_its_page_in_mlflow_has_the_trials_but_not_their_repeats(confirmed: Place) -> None:
    client = open_client(f"sqlite:///{confirmed.root}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    shown = client.search_runs(experiments, trials_filter("s"))
    assert len(shown) == 6 and {run.data.tags["sweep.role"] for run in shown} == {"base", "default", "trial"}


class Unlimited(Place):
    """Its searches learn nothing, so that they may have as many slots as trials."""

    def search_arguments(self, *more: str) -> list[str]:
        return super().search_arguments(*more, "search/pruner=none", "search/sampler=random")


@pytest.mark.slow
def test_each_seed_has_a_pack_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although there is room for three trials, and each seed has two."""
    place = Unlimited(tmp_path)
    running: set[str] = set()
    together: list[list[str]] = []
    started, ended = Display.started, Display.ended

    def note(self: Display, spec: Any) -> None:
        started(self, spec)
        if spec.role == "confirm":
            running.add(spec.name)
            together.append(sorted(running))

    def forget(self: Display, record: Any) -> None:
        ended(self, record)
        running.discard(record.name)

    monkeypatch.setattr(Display, "started", note)
    monkeypatch.setattr(Display, "ended", forget)
    shape = ["n_trials=3", "trainer.slots=3", "search.confirm.k=2", "search.confirm.repeats=2"]
    assert quick(place, *shape) == 0
    assert place.record().environment["slots"] == 3
    assert [[name[-1] for name in names] for names in together] == [["1"], ["1", "1"], ["2"], ["2", "2"]]


@pytest.mark.faults
def test_an_interruption_while_confirming(
    confirmed: Place, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It comes in the second of two rounds; what had ended is not trained again."""
    evaluated = Display.evaluated

    def interrupt(self: Display, name: str, row: dict[str, float]) -> None:
        evaluated(self, name, row)
        if name.startswith("confirm-") and name.endswith("-2") and row["step"] == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Display, "evaluated", interrupt)
        assert quick(place, *CONFIRM) == 130
    halfway = answer.compute(study(place))
    assert (halfway.state, halfway.confirming, halfway.finalists) == ("interrupted", (2, 4), [])
    first = {name: written(place, name) for name in repeats(place) if name.endswith("-1")}
    assert len(first) == 2 and "test_loss" not in place.trial("base").metrics
    capsys.readouterr()

    assert quick(place, *CONFIRM) == 0
    assert "Training again with other seeds, 2 times in all" in capsys.readouterr().out
    assert {name: written(place, name) for name in first} == first
    assert place.results() == confirmed.results()
    assert mlflow_runs(place)[sorted(repeats(place))[-1]].info.status == "FINISHED"


def written(place: Place, name: str) -> int:
    return (place.folder() / name / "trial.json").stat().st_mtime_ns


@pytest.mark.slow
def test_a_study_that_is_complete_can_be_confirmed_later(confirmed: Place, place: Place) -> None:
    assert quick(place, *CONFIRM, "search.confirm.k=0") == 0
    assert repeats(place) == []
    assert quick(place, *CONFIRM) == 0
    assert place.results() == confirmed.results()
    assert confirm.rounds(place.folder(), ConfirmConfig(2, 2)) == []
    more = confirm.rounds(place.folder(), ConfirmConfig(3, 3))
    assert [[spec.repeat for spec in specs] for specs in more] == [[1], [2], [3, 3, 3]]


@pytest.mark.slow
def test_out_of_memory_while_confirming(place: Place, short_of_memory: Any) -> None:
    """One for which there is no room has failed, with whatever seed, and is not tried again by a resume."""
    alone = ["n_trials=1", "search.confirm.k=1", "search.confirm.repeats=1", "lora_parameters.rank=4"]
    assert quick(place, *CONFIRM, *alone, "search.confirm.k=0", "trainer.slots=1") == 0
    short_of_memory("error", 1, 4, 4)
    for _ in range(2):
        assert quick(place, *CONFIRM, *alone, "trainer.slots=1") == 0
    again = place.trial("confirm-0000-1")
    assert (again.role, again.repeat, again.number, again.state) == ("confirm", 1, 0, "failed")
    (found,) = answer.compute(study(place)).finalists
    assert (found.name, found.n, found.failed) == ("trial-0000", 1, 1)


def test_what_is_scored(confirmed: Place, capsys: pytest.CaptureFixture[str]) -> None:
    finalists = {each.name for each in answer.compute(study(confirmed)).finalists}
    have = {trial.name for trial in study(confirmed).trials if "test_loss" in trial.metrics}
    assert have == {"base", "default"} | finalists
    before = {name: written(confirmed, name) for name in have}
    assert quick(confirmed, *CONFIRM, "tracking.samples=3") == 0
    assert {name: written(confirmed, name) for name in have} == before  # once
    assert "  On the test set: " in capsys.readouterr().out


def test_a_poisoned_test_set_changes_no_decision(confirmed: Place, place: Place) -> None:
    write_test_rows(place, noise=1)
    assert quick(place, *CONFIRM) == 0
    assert place.results() == confirmed.results()
    ours, theirs = answer.compute(study(place)), answer.compute(study(confirmed))
    for part in ("winner", "runners_up", "finalists", "leads", "gains"):
        assert getattr(ours, part) == getattr(theirs, part)
    assert ours.test.losses.keys() == theirs.test.losses.keys()
    assert all(ours.test.losses[name] != loss for name, loss in theirs.test.losses.items())


def test_no_test_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Place(tmp_path)
    assert quick(place, *CONFIRM, "n_trials=1", "search.confirm.k=0") == 0
    printed = capsys.readouterr().out
    assert "There is no test set" in printed and "Scoring" not in printed
    assert not any("test_loss" in trial.metrics for trial in study(place).trials)


def test_an_adapter_that_is_gone_is_said(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert quick(place, *CONFIRM, "n_trials=1", "search.confirm.k=0") == 0
    record = place.trial("trial-0000")
    del record.metrics["test_loss"]
    save_trial(place.folder() / "trial-0000", record)
    (place.folder() / "trial-0000" / "adapters" / "adapters.safetensors").unlink()
    assert quick(place, *CONFIRM, "n_trials=1", "search.confirm.k=0") == 0
    assert "trial-0000 was not scored on the test set: " in capsys.readouterr().out
    assert sentences.test_set(answer.compute(study(place))) == "The winner was not scored on the test set."


def test_a_single_run_is_scored_too(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *place.arguments("study=one")]) == 0
    loss = place.trial("", "train/one").metrics["test_loss"]
    assert f"Test loss {loss:.4f}" in capsys.readouterr().out.splitlines()
    assert mlflow_runs(place)["one"].data.metrics["test_loss"] == loss
