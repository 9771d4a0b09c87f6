"""A search that keeps the adapters of its best trials only."""

from pathlib import Path

import pytest

from lora_core.records import StudyRecord, TrialRecord, save_study, save_trial
from sweeps.connect import open_client
from sweeps.keep import drop_adapters
from tests.sweeps.helpers import Place, quick
from tests.sweeps.test_search import mlflow_runs


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def kept(place: Place) -> set[str]:
    """The trials whose adapters lie on disk, by their files."""
    return {file.parts[-3] for file in place.folder().glob("*/adapters/adapters.safetensors")}


def best(place: Place, count: int) -> set[str]:
    done = [trial for trial in place.trials() if trial.state == "complete" and trial.value is not None]
    return {trial.name for trial in sorted(done, key=lambda trial: trial.value or 0)[:count]}


def in_mlflow(place: Place) -> set[str]:
    """The trials that have files of an adapter there; `quick` stores no files, so it is the models that tell."""
    return {name for name, run in mlflow_runs(place).items() if run.outputs and run.outputs.model_outputs}


def test_the_best_are_kept(place: Place) -> None:
    settings = ["trainer.slots=1", "search.pruner.n_startup_trials=9", "keep_state=true"]
    assert quick(place, *settings, "tracking.keep=2", "n_trials=5") == 0
    names = best(place, 2) | {"default"}
    assert kept(place) == {trial.name for trial in place.trials() if trial.adapter} | {"default"} == names
    assert in_mlflow(place) == names
    # More trials, and a run that keeps fewer.
    assert quick(place, *settings, "tracking.keep=1", "n_trials=8") == 0
    assert kept(place) == best(place, 1) | {"default"}
    assert kept(place) == {file.parent.name for file in place.folder().glob("*/slot-*.safetensors")}
    assert in_mlflow(place) == names | best(place, 1)
    client = open_client(f"sqlite:///{place.root}/mlflow.db")
    for name, run in mlflow_runs(place).items():
        if name in kept(place):
            assert len(client.get_metric_history(run.info.run_id, "final_val_loss")) == 1


def test_the_winner_is_kept_whatever_its_place(place: Place) -> None:
    """Other seeds decide who wins; the repeats' own adapters are of no use to anyone."""
    confirm = ["search.confirm.k=3", "search.confirm.repeats=1", "search.pruner.n_startup_trials=9"]
    assert quick(place, "trainer.slots=1", "tracking.keep=1", "n_trials=4", "fuse=true", *confirm) == 0
    from reports.study import load

    winner = load(place.folder()).winner
    assert winner is not None
    assert kept(place) == best(place, 1) | {winner.name, "default"}
    assert (place.folder() / "best" / "model.safetensors").exists()


def test_a_winner_is_kept_until_better_ones_have_had_its_seeds(tmp_path: Path) -> None:
    """As where a study that is complete gets more trials."""

    def ended(number: int, value: float, repeat: int = 0) -> None:
        name = f"confirm-{number:04d}-{repeat}" if repeat else f"trial-{number:04d}"
        trial = TrialRecord(name, "confirm" if repeat else "trial", "complete", number, repeat)
        trial.metrics = {"best_val_loss": value}
        if not repeat:
            trial.adapter = str(tmp_path / name / "adapters")
        (tmp_path / name / "adapters").mkdir(parents=True, exist_ok=True)
        save_trial(tmp_path / name, trial)

    save_study(tmp_path, StudyRecord("s", config={"search": {"confirm": {"k": 1, "repeats": 1}}}))
    ended(0, 0.3)
    ended(0, 0.1, repeat=1)
    ended(1, 0.2)
    assert drop_adapters(tmp_path, 1) == []
    ended(1, 0.9, repeat=1)
    assert drop_adapters(tmp_path, 1) == [], "it wins again"
    ended(1, 0.1, repeat=1)
    assert drop_adapters(tmp_path, 1) == ["trial-0000"]
