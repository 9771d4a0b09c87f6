"""A search from its command to its report, and what becomes of it when something dies."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from lora_core.records import load_metrics
from sweeps.cli import main
from sweeps.client import Worker
from sweeps.connect import open_client
from sweeps.display import Display
from tests.sweeps.helpers import Place, quick

Run = Callable[..., Place]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Eight trials one after the other, pruner on, with report and merged winner."""
    place = Place(tmp_path_factory.mktemp("undisturbed"))
    assert main(place.search_arguments("trainer.slots=1", "fuse=true")) == 0
    return place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_a_search_leaves(undisturbed: Place) -> None:
    trials, record = undisturbed.trials(), undisturbed.record()
    assert [trial.number for trial in trials] == list(range(8))
    assert {trial.state for trial in trials} == {"complete", "pruned"}
    base, default = undisturbed.trial("base"), undisturbed.trial("default")
    assert (base.role, base.step, base.adapter) == ("base", 0, None)
    assert (default.role, default.step, default.state) == ("default", 8, "complete")
    assert (record.state, record.environment["slots"]) == ("complete", 1)
    for file in ("report/report.html", "report/trials.csv", "best/config.json", "best/model.safetensors"):
        assert (undisturbed.folder() / file).exists()
    assert [note for note in record.notes if note.startswith("In merging, rounding to the base's dtype changed ΔW by ")]
    assert not list(undisturbed.folder().glob("*.log"))
    adapters = {file.parts[-3] for file in undisturbed.folder().glob("*/adapters/adapters.safetensors")}
    assert adapters == {"default", *(trial.name for trial in trials)}


def test_disk_and_optuna_agree(undisturbed: Place) -> None:
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{undisturbed.root}/optuna.db")
    states = {"complete": "COMPLETE", "pruned": "PRUNED"}
    for trial, told in zip(undisturbed.trials(), study.trials, strict=True):
        rows = load_metrics(undisturbed.folder() / trial.name)
        assert told.state.name == states[trial.state]
        assert told.params == trial.params
        assert told.intermediate_values == {row["step"]: row["val_loss"] for row in rows if row["step"] > 0}
        assert trial.value == min(row["val_loss"] for row in rows if row["step"] > 0)
        assert told.value == (trial.value if trial.state == "complete" else min_last(told))


def min_last(told: optuna.trial.FrozenTrial) -> float:
    """Optuna gives a pruned trial its last report as value."""
    return told.intermediate_values[max(told.intermediate_values)]


def test_mlflow_agrees(undisturbed: Place) -> None:
    runs = mlflow_runs(undisturbed)
    statuses = {"complete": "FINISHED", "pruned": "KILLED"}
    for trial in undisturbed.trials():
        run = runs[trial.name]
        assert run.info.status == statuses[trial.state]
        assert run.data.metrics["best_val_loss"] == trial.value
    assert runs["study"].info.status == "FINISHED"


def mlflow_runs(place: Place) -> dict[str, Any]:
    """The run of each trial by its name, but for attempts that were given up, and the study's own run."""
    from sweeps.connect import open_client

    client = open_client(f"sqlite:///{place.root}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    kept = [run for run in runs if run.data.tags["sweep.role"] != "attempt"]
    named = {run.data.tags.get("sweep.trial", run.data.tags["sweep.role"]): run for run in kept}
    assert len(named) == len(kept), [run.info.run_name for run in kept]
    return named


def test_the_same_command_gives_the_same(undisturbed: Place, place: Place) -> None:
    assert quick(place, "trainer.slots=1") == 0
    assert place.results() == undisturbed.results()
    assert all(result[-1] for result in place.results()[1:])


@pytest.mark.slow
def test_the_same_command_gives_the_same_in_two_slots(undisturbed: Place, place: Place) -> None:
    assert quick(place, "trainer.slots=2") == 0
    first = place.results()
    assert place.record().environment["slots"] == 2
    again = Place(place.root / "again")
    assert quick(again, "trainer.slots=2") == 0
    assert again.results() == first
    # The neighbour in the other slot changes no bit of a trial either, whoever is stopped for being behind whom.
    assert first[:3] == undisturbed.results()[:3]
    for number in range(5):  # drawn at random
        one, other = (load_metrics(p.folder() / f"trial-{number:04d}") for p in (place, undisturbed))
        assert [row["val_loss"] for row in one[:2]] == [row["val_loss"] for row in other[:2]]


def test_another_seed_gives_something_else(undisturbed: Place, place: Place) -> None:
    assert quick(place, "trainer.slots=1", "seed=1", "n_trials=2") == 0
    ours, theirs = place.results(), undisturbed.results()
    assert ours[0] == theirs[0]  # the base model
    assert all(a[2:] != b[2:] for a, b in zip(ours[1:4], theirs[1:4], strict=True))


def test_no_trial_is_stopped_while_its_rate_warms_up(undisturbed: Place, place: Place) -> None:
    assert "pruned" in [trial.state for trial in undisturbed.trials()]  # at step 4 of 8
    assert quick(place, "trainer.slots=1", "optimizer.warmup=0.5") == 0
    assert {trial.state for trial in place.trials()} == {"complete"}


def test_a_grid_of_two_objectives_under_a_constraint(
    undisturbed: Place, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {trial.params["lora_parameters.rank"]: trial.metrics["adapter_mb"] for trial in undisturbed.trials()}
    argv = place.arguments(
        "search=quick", "search/sampler=grid", "search/pruner=none", "search.objectives=[val_loss,adapter_mb]",
        f"search.constraints=['adapter_mb<{sizes[4]:.6f}']", "optimizer.learning_rate=1e-3,1e-2", "trainer.slots=1",
        "lora_parameters.rank=2,4", f"storage=sqlite:///{place.root}/optuna.db", "study=s", "n_trials=9",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reports.writer.build", lambda folder: folder / "report" / "report.html")
        assert main(["search", *argv]) == 0
    printed = capsys.readouterr().out
    told = optuna.load_study(study_name="s", storage=f"sqlite:///{place.root}/optuna.db").trials
    assert [trial.values for trial in told] == [[t.value, t.metrics["adapter_mb"]] for t in place.trials()]
    points = [(t.params["optimizer.learning_rate"], t.params["lora_parameters.rank"]) for t in told]
    assert points == [(1e-3, 2), (1e-3, 4), (1e-2, 2), (1e-2, 4)]
    assert "all of its 4 settings were tried" in printed
    # The larger rank learns faster, but may not win.
    best = min((t for t in place.trials() if t.params["lora_parameters.rank"] == 2), key=lambda t: t.value or 9)
    assert f"{best.name} wins" in printed
    assert len([line for line in printed.splitlines() if "breaks adapter_mb<" in line]) == 2
    runs = mlflow_runs(place)
    assert runs["study"].data.metrics["study/best_so_far"] == best.value
    assert runs["study"].data.tags["sweep.objective"] == "minimize best_val_loss, adapter_mb"


def test_more_trials_continue_the_study(undisturbed: Place, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert quick(place, "trainer.slots=1", "n_trials=3") == 0
    assert len(place.trials()) == 3
    capsys.readouterr()
    assert quick(place, "trainer.slots=1", "n_trials=8") == 0
    assert "3 of 8 trials have ended already" in capsys.readouterr().out
    assert place.results() == undisturbed.results()
    assert place.record().n_trials == 8


def test_nothing_is_left_to_do(undisturbed: Place) -> None:
    before = undisturbed.results()
    assert quick(undisturbed, "trainer.slots=1") == 0
    assert undisturbed.results() == before


def test_fewer_trials_than_have_ended(undisturbed: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = undisturbed.results()
    assert quick(undisturbed, "trainer.slots=1", "n_trials=3") == 0
    assert "8 trials have ended already, more than n_trials=3" in capsys.readouterr().out
    assert undisturbed.results() == before
    assert undisturbed.record().n_trials == 8


@pytest.fixture
def fatal(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Sends the training process a signal as soon as a trial's first evaluation is in, so many times."""
    workers: list[Worker] = []
    real = Worker.__init__

    def kept(self: Worker, *given: Any) -> None:
        real(self, *given)
        workers.append(self)

    def arm(name: str, number: int, times: int = 10**9) -> None:
        evaluated, shots = Display.evaluated, iter(range(times))

        def shoot(self: Display, trial: str, row: dict[str, float]) -> None:
            evaluated(self, trial, row)
            if trial == name and row["step"] == 4 and next(shots, None) is not None:
                os.kill(workers[-1].process.pid, number)
                workers[-1].process.wait()

        monkeypatch.setattr(Display, "evaluated", shoot)

    monkeypatch.setattr(Worker, "__init__", kept)
    return arm


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGTERM])
def test_the_training_process_dies(
    undisturbed: Place, place: Place, fatal: Callable[..., None], capfd: pytest.CaptureFixture[str], number: int
) -> None:
    fatal("trial-0002", number, times=2)
    assert quick(place, "trainer.slots=1") == 0
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err and "already reported" not in printed.err
    notes = [note for note in place.record().notes if "It is started again" in note]
    assert len(notes) == 2 and signal.Signals(number).name in notes[0] and notes[0] in printed.out
    assert (place.folder() / "worker.log").exists()
    assert place.results() == undisturbed.results()
    assert mlflow_runs(place)["trial-0002"].data.tags.get("sweep.reason") != "interrupted"
    assert not [run for run in mlflow_runs(place).values() if run.info.status == "RUNNING"]


@pytest.mark.faults
def test_a_trial_that_kills_the_training_process_is_given_up(place: Place, fatal: Callable[..., None]) -> None:
    fatal("trial-0000", signal.SIGKILL)
    assert quick(place, "n_trials=2", "trainer.slots=1") == 0
    first, second = place.trials()
    assert (first.state, second.state) == ("failed", "complete")
    assert first.reason is not None and "3 times" in first.reason
    assert mlflow_runs(place)["trial-0000"].info.status == "FAILED"
    assert not list(place.folder().rglob("slot*"))


@pytest.mark.faults
def test_a_trial_that_kills_is_found_among_others(
    place: Place, fatal: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer beside it each time, until it is alone; its neighbours lose nothing."""
    monkeypatch.setattr("sweeps.client.MEMORY_SIGNALS", ())
    fatal("trial-0001", signal.SIGKILL)
    independent = ["search/sampler=random", "search/pruner=none", "n_trials=4", "trainer.slots=2"]
    assert quick(place, *independent) == 0
    assert [trial.state for trial in place.trials()] == ["complete", "failed", "complete", "complete"]
    assert place.record().environment["slots"] == 1


def test_without_the_default_row_there_is_no_going_on(
    place: Place, fatal: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    fatal("default", signal.SIGKILL)
    assert quick(place, "n_trials=2", "trainer.slots=1") == 1
    said = capfd.readouterr().err
    assert "SIGKILL" in said and "study=s" in said and "Traceback" not in said and len(said.splitlines()) <= 3
    assert place.record().state == "interrupted"
    assert mlflow_runs(place)["study"].info.status == "KILLED"


def test_trials_that_ended_but_were_not_told_are_told_from_disk(
    undisturbed: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    before, curve = undisturbed.results(), undisturbed.folder() / "trial-0003" / "metrics.jsonl"
    written = curve.stat().st_mtime_ns
    # The storage is gone altogether, so that nothing at all was told.
    (undisturbed.root / "optuna.db").unlink()
    assert quick(undisturbed, "trainer.slots=1", "n_trials=3") == 0
    assert "8 of 8 trials ended" in capsys.readouterr().out  # those on disk are still part of the study
    assert quick(undisturbed, "trainer.slots=1") == 0
    assert undisturbed.results() == before
    assert curve.stat().st_mtime_ns == written
    test_disk_and_optuna_agree(undisturbed)


@pytest.mark.faults
def test_the_parent_is_killed(undisturbed: Place, place: Place) -> None:
    parent = place.start(*place.search_arguments("trainer.slots=1"))
    child = reach(place, "trial-0001", parent)
    parent.kill()
    parent.communicate()
    wait_for(lambda: not alive(child))
    assert quick(place, "trainer.slots=1") == 0
    assert place.results() == undisturbed.results()


LONG = ["trainer.slots=1", "trainer.iters=64", "search/sampler=random", "search/pruner=none", "n_trials=1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """One long trial, undisturbed."""
    place = Place(tmp_path_factory.mktemp("whole"))
    assert quick(place, *LONG) == 0
    return place


@pytest.mark.faults
@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, signal.SIGINT, signal.SIGTERM],
)
def test_a_trial_goes_on_where_it_was(whole: Place, place: Place, number: int) -> None:
    parent = place.start(*place.search_arguments(*LONG))
    child = reach(place, "trial-0000", parent)
    curve = place.folder() / "trial-0000"
    wait_for(lambda: len(load_metrics(curve)) >= 2 or parent.poll() is not None)
    parent.send_signal(number)
    parent.communicate(timeout=60)
    wait_for(lambda: not alive(child))
    assert (curve / "slot.json").exists()
    before, written = load_metrics(curve), (curve / "metrics.jsonl").read_text()
    assert quick(place, *LONG) == 0
    assert place.results() == whole.results()
    # The rows there were are those there are, with the seconds that they took then.
    assert (curve / "metrics.jsonl").read_text().startswith(written) and len(before) >= 2
    run = mlflow_runs(place)["trial-0000"]
    client = open_client(f"sqlite:///{place.root}/mlflow.db")
    logged = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "val_loss")]
    assert sorted(logged) == [(row["step"], row["val_loss"]) for row in load_metrics(curve)]
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [run.data.tags["sweep.role"] for run in runs].count("study") == 1
    assert not [run for run in runs if run.info.status == "RUNNING"]


def test_ctrl_c(place: Place) -> None:
    parent = place.start(*place.search_arguments("trainer.slots=1", "n_trials=50"))
    child = reach(place, "trial-0001", parent)
    parent.send_signal(signal.SIGINT)
    _, said = parent.communicate(timeout=300)
    assert parent.returncode == 130
    assert "Resume with: lora-sweep search" in said and "Traceback" not in said
    assert len(said.splitlines()) <= 3
    assert not alive(child)
    assert place.record().state == "interrupted"
    assert mlflow_runs(place)["study"].info.status == "KILLED"


def reach(place: Place, name: str, parent: subprocess.Popen) -> int:
    """Waits until a trial has begun; returns the id of the training process."""
    wait_for(lambda: (place.folder() / name / "trial.json").exists() or parent.poll() is not None)
    found = subprocess.run(["pgrep", "-P", str(parent.pid)], capture_output=True, text=True).stdout.split()
    assert len(found) == 1, parent.communicate()
    return int(found[0])


def alive(process: int) -> bool:
    """Whether it runs; one that has ended but was not waited for by anybody does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def wait_for(holds: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)  # looking costs time of those that are waited for


def test_a_diverging_trial_does_not_stop_the_search(place: Place) -> None:
    rates = "optimizer.learning_rate=1e-2,1e30"
    assert quick(place, rates, "lora_parameters.rank=4", "trainer.grad_clip=null", "n_trials=5") == 0
    states = sorted((trial.state, trial.reason) for trial in place.trials())
    assert states == [("complete", None), ("failed", "diverged")]
    # Two settings are all there are.
    assert any("exhausted: all of its 2 settings" in note for note in place.record().notes)


def test_from_an_adapter(undisturbed: Place, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything starts from it but the base model, which has no adapter. Another one in its place is another study."""
    adapter, start = undisturbed.folder() / "default" / "adapters", place.root / "start"
    shutil.copytree(adapter, start)
    settings = ["lora_parameters.rank=8", "num_layers=4", f"resume_adapter_file={start}", "n_trials=1"]
    assert quick(place, *settings) == 0
    assert place.trial("base").value == undisturbed.trial("base").value
    first = load_metrics(place.folder() / "default")[0]["val_loss"]
    assert first == pytest.approx(undisturbed.trial("default").value, rel=1e-5)

    shutil.copytree(str(place.trial("trial-0000").adapter), start, dirs_exist_ok=True)
    assert quick(place, *settings, "n_trials=2") == 2
    refused = capsys.readouterr().err
    assert f"exists with other settings: contents of {start}: " in refused and len(refused.splitlines()) <= 3


def test_no_trial_completes(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    rates = "optimizer.learning_rate=1e29,1e30"
    assert quick(place, rates, "lora_parameters.rank=4", "trainer.grad_clip=null", "n_trials=2") == 1
    printed = capsys.readouterr().out
    assert "No trial has completed" in printed and "2 failed: diverged" in printed


def test_a_report_that_fails_loses_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(folder: Path) -> Path:
        raise ValueError("no colours left\nat all")

    monkeypatch.setattr("reports.writer.build", broken)
    assert main(place.search_arguments("n_trials=1")) == 0
    printed = capsys.readouterr().out
    assert "could not be written (no colours left)" in printed and "lora-sweep report s" in printed
    assert place.record().state == "complete"


def test_epochs_and_patience(place: Place) -> None:
    # Three batches an epoch: 12 steps; the loss of a rate this high does not fall twice in a row.
    length = ["trainer.iters=null", "trainer.epochs=4", "trainer.eval_every=1", "trainer.patience=1"]
    assert quick(place, *length, "optimizer.learning_rate=0.5,0.6", "lora_parameters.rank=4", "n_trials=2") == 0
    for trial in place.trials():
        assert trial.planned_steps == 12
        assert trial.state == "complete" and trial.step < 12
        assert trial.reason is not None and "1 evaluations" in trial.reason


def test_no_control_characters_in_a_log(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert quick(place, "n_trials=1") == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\r" not in printed
    assert "trial-0000" in printed and "Loading the model" in printed
