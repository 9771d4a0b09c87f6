"""Too little memory: a search goes on with fewer slots, and nothing is lost or doubled."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.fault_table import tried
from tests.sweeps.faults import assert_whole
from tests.sweeps.helpers import Place, quick
from tests.sweeps.test_search import mlflow_runs

pytestmark = pytest.mark.faults


def search(place: Place, *more: str) -> int:
    """Four trials that do not learn from one another, so that they are the same in however many slots."""
    shared = ["search/sampler=random", "search/pruner=none", "n_trials=4", "trainer.slots=4"]
    return quick(place, *shared, *more)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The same four trials in four slots, with all the memory that they need."""
    place = Place(tmp_path_factory.mktemp("roomy"))
    assert search(place) == 0
    return place


@tried("out of memory")
def test_an_exception_halves_the_slots(
    roomy: Place, place: Place, short_of_memory: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    workers = short_of_memory("error", 1)
    assert search(place) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "→" in line and "Slots" in line]
    assert len(said) == 2 and "Unable to allocate" in said[0]
    assert said[0].endswith("Slots 4 → 2.") and said[1].endswith("Slots 2 → 1.")
    assert len(workers) == 3
    assert place.results() == roomy.results()
    assert_whole(place, 4)
    record = place.record()
    assert record.environment["slots"] == 1 and record.state == "complete"
    assert [note for note in record.notes if "→" in note and "Slots" in note] == said
    # A resume, with the same words or with auto, uses what was used at the end.
    for slots in ("trainer.slots=4", "trainer.slots=auto"):
        assert search(place, slots, "n_trials=5") == 0
        assert place.record().environment["slots"] == 1


@tried("out of memory")
def test_a_killed_process_halves_the_slots(
    roomy: Place, place: Place, short_of_memory: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    workers = short_of_memory(int(signal.SIGKILL), 2)
    assert search(place) == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "→" in line and "Slots" in line]
    assert "SIGKILL" in said and said.endswith("Slots 4 → 2.")
    assert [worker.returncode for worker in workers] == [-signal.SIGKILL, 0]
    assert place.results() == roomy.results()
    assert_whole(place, 4)
    assert place.record().environment["slots"] == 2


def test_enough_memory_changes_nothing(
    roomy: Place, place: Place, short_of_memory: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    workers = short_of_memory("error", 4)
    assert search(place) == 0
    assert "Slots 4 →" not in capsys.readouterr().out
    assert len(workers) == 1
    assert place.results() == roomy.results()
    assert place.record().environment["slots"] == 4


def test_another_death_is_first_tried_again_with_as_many(
    roomy: Place, place: Place, short_of_memory: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    workers = short_of_memory(int(signal.SIGTERM), 1)
    assert search(place) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "SIGTERM" in line]
    assert all(line.endswith("It is started again.") for line in said[:2]) and said[2].endswith("Slots 4 → 2.")
    assert len(workers) == len(said) + 1
    assert place.results() == roomy.results()
    assert_whole(place, 4)


@pytest.mark.parametrize("step", [6, 1])  # at the first one the measuring finds it, too
def test_one_trial_that_does_not_fit_fails_alone(
    step: int, place: Place, short_of_memory: Callable[..., list[Any]]
) -> None:
    ranks = ["lora_parameters.rank=4,8,16", "optimizer.learning_rate=1e-2", "trainer.slots=2", "n_trials=8"]
    short_of_memory("error", 2, 16, step)
    assert search(place, *ranks) == 0
    found = {trial.params["lora_parameters.rank"]: (trial.state, trial.reason) for trial in place.trials()}
    assert found == {4: ("complete", None), 8: ("complete", None), 16: ("failed", "out of memory")}
    assert_whole(place, 3)
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{place.root}/optuna.db")
    (failed,) = [trial for trial in study.trials if trial.constraints == {"memory": 1.0}]
    assert failed.state.name == "PRUNED"
    assert failed.user_attrs["reason"] == "out of memory" and "crashes" not in failed.user_attrs
    run = mlflow_runs(place)[f"trial-{failed.number:04d}"]
    assert (run.info.status, run.data.tags["sweep.reason"]) == ("FAILED", "out of memory")


def test_a_given_number_that_does_not_fit_is_halved_in_the_measuring(
    place: Place, short_of_memory: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    workers = short_of_memory("error", 2, 10**9, 1)
    assert search(place) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "Slots" in line]
    assert said[0].endswith("Slots at most 4 → 2.") and said[1].startswith("Slots 2 (1: ")
    assert len(workers) == 2 and place.record().environment["slots"] == 2


def test_nothing_fits(
    place: Place, short_of_memory: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    short_of_memory("error", 0)
    assert search(place, "trainer.slots=1", "n_trials=2") == 1
    assert place.trial("default").reason == "out of memory"
    assert "2 failed: out of memory" in capsys.readouterr().out
