"""What MLflow shows of a study, on a real SQLite store."""

import json
import math
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lora_core.config import TrainConfig
from lora_core.errors import UserError
from lora_core.records import StudyRecord, TrialRecord, append_metrics, load_trial, save_study, save_trial
from lora_core.trial import TrialSpec
from sweeps.run_values import params
from sweeps.tracking import DESCRIPTION, Tracker
from sweeps.trial_run import model_of

if TYPE_CHECKING:  # `sweeps` decides how mlflow is imported
    from mlflow.entities import Run

DATA = {"path": "builtin:demo", "fingerprint": "f" * 16, "rows": {"train": 9}, "tokens": {"train": 99}}


def append_metrics_of(spec: TrialSpec, losses: list[float]) -> None:
    """What a trial writes, without MLflow being told."""
    Path(spec.folder).mkdir(exist_ok=True)
    for index, loss in enumerate(losses):
        append_metrics(Path(spec.folder), {"step": 10 * index, "val_loss": loss, "seconds": float(index)})


class Sweep:
    """A study without a trainer: writes the files of a study and tells the tracker, as a search does."""

    def __init__(self, root: Path, name: str = "my-study", kind: str = "search") -> None:
        self.uri = f"sqlite:///{root}/mlflow.db"
        self.folder = root / "outputs" / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.record = StudyRecord(
            name, kind, n_trials=4, space=["lora_parameters.rank=4,8"], sampler="tpe", pruner="median",
            config={"seed": 0, "data": {"path": "builtin:demo"}}, data=DATA,
            environment={"git": "abc123 with changes"},
        )  # fmt: skip
        self.open()

    def open(self) -> None:
        self.tracker = Tracker(self.uri, "tiny/demo")
        self.tracker.open_study(self.record, self.folder)

    def spec(self, name: str, rank: int = 8, role: str = "trial") -> TrialSpec:
        number = int(name[-4:]) if role == "trial" else None
        config = TrainConfig().to_dict()
        config["lora_parameters"]["rank"] = rank
        params = {"lora_parameters.rank": rank} if role == "trial" else {}
        return TrialSpec(name, role, config, str(self.folder / name), number, params=params)

    def run(self, spec: TrialSpec, losses: list[float], state: str = "complete", reason: str | None = None) -> None:
        self.tracker.start_trial(self.record, spec)
        self.evaluate(spec, losses)
        self.tracker.end_trial(self.ended(spec, losses, state, reason))

    def evaluate(self, spec: TrialSpec, losses: list[float]) -> None:
        Path(spec.folder).mkdir(exist_ok=True)
        for index, loss in enumerate(losses):
            row = {"step": 10 * index, "val_loss": loss, "seconds": float(index)}
            if index:
                row |= {"train_loss": loss + 0.1, "learning_rate": 1e-4, "tokens_per_second": 100.0 + index}
            append_metrics(Path(spec.folder), row)
            self.tracker.log_evaluation(spec.name, row)

    def ended(
        self, spec: TrialSpec, losses: list[float], state: str = "complete", reason: str | None = None
    ) -> TrialRecord:
        adapter = Path(spec.folder) / "adapters"
        adapter.mkdir(parents=True, exist_ok=True)
        (adapter / "adapters.safetensors").write_bytes(b"weights")
        values = {key: value for key, value in asdict(spec).items() if key not in ("folder", "goes_on_from")}
        metrics = {"tokens_per_second": 90.0, "scale_ratio": 2.5, "best_val_loss": min(losses[1:] or losses)}
        best_step = 10 * losses.index(metrics["best_val_loss"])
        record = TrialRecord(
            **values, state=state, reason=reason, metrics=metrics, step=10 * len(losses), best_step=best_step,
            adapter=str(adapter), adapter_sha256="0123", started="2026-01-01T00:00:00+00:00",
            ended="2026-01-01T00:01:00+00:00",
        )  # fmt: skip
        save_trial(Path(spec.folder), record)
        return record

    def mlflow_run(self, name: str | None = None) -> "Run":
        run_id = self.record.runs[name] if name else self.record.tracking["run_id"]
        return self.tracker.store.client.get_run(run_id)

    def history(self, name: str | None, metric: str) -> list[tuple[int, float]]:
        run = self.mlflow_run(name)
        points = self.tracker.store.client.get_metric_history(run.info.run_id, metric)
        return [(point.step, point.value) for point in points]

    def model_losses(self, name: str) -> list[tuple[str, float, int, str]]:
        """What the Models tab shows of a trial's adapter by the data it is over."""
        model_id = model_of(self.mlflow_run(name))
        assert model_id is not None
        metrics = self.tracker.store.client.get_logged_model(model_id).metrics or []
        return sorted((m.key, m.value, m.step, m.dataset_name) for m in metrics if m.dataset_name)

    def children(self) -> "list[Run]":
        return self.tracker.store.children(self.record.tracking["run_id"])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty store: making its tables takes longer than most tests."""
    folder = tmp_path_factory.mktemp("store")
    Tracker(f"sqlite:///{folder}/mlflow.db", "other")
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture
def sweep(tmp_path: Path, prepared: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sweep]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(prepared)
    yield Sweep(tmp_path)


def test_a_trial_is_a_nested_run_with_dotted_params(sweep: Sweep) -> None:
    sweep.run(sweep.spec("trial-0002", rank=16), [3.0, 2.0])
    run = sweep.mlflow_run("trial-0002")
    assert run.info.run_name == "trial-0002 r16"
    assert run.info.status == "FINISHED"
    tags = run.data.tags
    assert tags["mlflow.parentRunId"] == sweep.record.tracking["run_id"]
    assert (tags["sweep.role"], tags["sweep.study"]) == ("trial", "my-study")
    assert (tags["optuna.trial"], tags["optuna.state"]) == ("2", "COMPLETE")
    assert run.data.params["lora_parameters.rank"] == "16"
    assert run.data.params["fuse"] == "true"
    assert run.data.params["resume_adapter_file"] == "null"
    assert not [key for key in run.data.params if isinstance(TrainConfig().to_dict().get(key), dict)]


def test_no_settings_of_what_a_run_does_not_have(sweep: Sweep) -> None:
    full = sweep.spec("trial-0001")
    full.config["train_type"] = "full"
    told = params(full)
    assert not [key for key in told if key.startswith("lora_parameters.")] and "optimizer.learning_rate" in told
    base = params(sweep.spec("base", role="base"))
    assert not {"train_type", "num_layers", "optimizer.learning_rate", "lora_parameters.rank"} & base.keys()
    assert "model.path" in base and "trainer.max_seq_length" in base


def test_the_objective_comes_first_and_shows_the_lowest_loss(sweep: Sweep) -> None:
    spec = sweep.spec("trial-0000")
    sweep.tracker.start_trial(sweep.record, spec)
    sweep.evaluate(spec, [1.0])
    assert sweep.mlflow_run("trial-0000").data.metrics == {}, "step 0 is the base model, not the trial's value"
    for step, loss in ((10, 3.0), (20, 2.0), (30, 2.5)):
        sweep.tracker.log_evaluation("trial-0000", {"step": step, "val_loss": loss})
    assert sweep.mlflow_run("trial-0000").data.metrics["best_val_loss"] == 2.0
    sweep.tracker.end_trial(sweep.ended(spec, [1.0, 3.0, 2.0, 2.5]))
    metrics = sweep.mlflow_run("trial-0000").data.metrics
    assert next(iter(metrics)) == "best_val_loss"
    assert metrics["best_val_loss"] == 2.0
    assert {step for step, _ in sweep.history("trial-0000", "best_val_loss")} == {0}


def test_curves_go_by_step_and_numbers_known_once_do_not_bend_them(sweep: Sweep) -> None:
    sweep.run(sweep.spec("trial-0000"), [3.0, 2.0, 2.5])
    assert sweep.history("trial-0000", "val_loss") == [(0, 3.0), (10, 2.0), (20, 2.5)]
    assert sweep.history("trial-0000", "tokens_per_second") == [(10, 101.0), (20, 102.0)]
    assert sweep.history("trial-0000", "scale_ratio") == [(0, 2.5)]


def test_statuses_tell_the_truth(sweep: Sweep) -> None:
    sweep.run(sweep.spec("trial-0000"), [3.0, 2.0], "pruned", "worse than the median")
    sweep.run(sweep.spec("trial-0001"), [3.0], "failed", "diverged")
    pruned, failed = sweep.mlflow_run("trial-0000"), sweep.mlflow_run("trial-0001")
    assert (pruned.info.status, failed.info.status) == ("KILLED", "FAILED")
    assert (pruned.data.tags["optuna.state"], failed.data.tags["optuna.state"]) == ("PRUNED", "PRUNED")
    assert failed.data.tags["sweep.reason"] == "diverged"


def test_files_data_and_model(sweep: Sweep) -> None:
    spec = sweep.spec("trial-0000")
    merged = Path(spec.folder) / "adapters" / "fused"
    merged.mkdir(parents=True)
    (merged / "model.safetensors").write_bytes(b"gigabytes")
    sweep.run(spec, [3.0, 2.0])
    client, run = sweep.tracker.store.client, sweep.mlflow_run("trial-0000")
    assert [file.path for file in client.list_artifacts(run.info.run_id, "adapters")] == [
        "adapters/adapters.safetensors"
    ]
    assert run.inputs and run.outputs
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("demo", "f" * 16)
    assert json.loads(str(dataset.profile)) == {"rows": {"train": 9}, "tokens": {"train": 99}}
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert (model.name, model.tags["sha256"]) == ("my-study-trial-0000", "0123")
    assert {metric.key: metric.value for metric in model.metrics or []}["best_val_loss"] == 2.0


VALID, TEST = ("val_loss", 2.0, 10, "demo-valid"), ("test_loss", 2.25, 0, "demo-test")


def score(sweep: Sweep, name: str) -> None:
    """As a search does: on disk, and told."""
    record = load_trial(sweep.folder / name)
    record.metrics["test_loss"] = TEST[1]
    save_trial(sweep.folder / name, record)
    sweep.tracker.log_number(name, "test_loss", TEST[1])


def test_a_model_has_each_loss_over_its_own_rows_once(sweep: Sweep) -> None:
    sweep.run(sweep.spec("trial-0000"), [3.0, 2.0, 2.5])
    assert sweep.model_losses("trial-0000") == [VALID]
    score(sweep, "trial-0000")
    for _ in range(2):
        assert sweep.model_losses("trial-0000") == [TEST, VALID]
        assert sweep.history("trial-0000", "val_loss") == [(0, 3.0), (10, 2.0), (20, 2.5)]
        assert sweep.history("trial-0000", "test_loss") == [(0, 2.25)]
        sweep.open()


def test_a_model_that_was_missed_gets_its_losses_later(sweep: Sweep) -> None:
    sweep.tracker.problem = "MLflow is away"
    sweep.run(sweep.spec("trial-0000"), [3.0, 2.0, 2.5])
    score(sweep, "trial-0000")
    for _ in range(2):
        sweep.open()
        assert sweep.model_losses("trial-0000") == [TEST, VALID]
        assert sweep.history("trial-0000", "val_loss") == [(0, 3.0), (10, 2.0), (20, 2.5)]


def test_a_model_that_is_added_at_the_end_gets_its_losses_too(sweep: Sweep) -> None:
    sweep.record.config["tracking"] = {"keep": "1"}
    sweep.run(sweep.spec("trial-0000"), [3.0, 2.0, 2.5])
    score(sweep, "trial-0000")
    assert model_of(sweep.mlflow_run("trial-0000")) is None
    for _ in range(2):
        sweep.tracker.close_study(sweep.record, "complete", None)
        assert sweep.model_losses("trial-0000") == [TEST, VALID]
        assert sweep.history("trial-0000", "test_loss") == [(0, 2.25)]


def test_the_study_run(sweep: Sweep, tmp_path: Path) -> None:
    for number, loss in ((1, 2.0), (0, 2.5), (2, 2.2)):
        sweep.run(sweep.spec(f"trial-000{number}"), [3.0, loss])
    sweep.run(sweep.spec("base", role="base"), [3.0])
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.md").write_text("who won")
    sweep.tracker.close_study(sweep.record, "complete", tmp_path / "report")
    run = sweep.mlflow_run()
    assert (run.info.run_name, run.info.status) == ("my-study", "FINISHED")
    assert run.data.tags["sweep.role"] == "study"
    assert run.data.tags["sweep.space"] == "lora_parameters.rank=4,8"
    assert run.data.tags["mlflow.source.git.commit"] == "abc123"
    assert run.data.metrics == {"study/best_so_far": 2.0, "study/trial_value": 2.2}
    assert sorted(sweep.history(None, "study/trial_value")) == [(0, 2.5), (1, 2.0), (2, 2.2)]
    files = {file.path for file in sweep.tracker.store.client.list_artifacts(run.info.run_id)}
    assert files == {"config.yaml", "space.txt", "report"}


def test_each_trial_says_its_place_once_the_study_is_complete(sweep: Sweep) -> None:
    for number, loss in enumerate((2.5, 2.0)):
        sweep.run(sweep.spec(f"trial-000{number}"), [3.0, loss])
    sweep.tracker.close_study(sweep.record, "interrupted", None)
    assert DESCRIPTION not in sweep.mlflow_run("trial-0001").data.tags
    sweep.open()
    sweep.tracker.close_study(sweep.record, "complete", None)
    told = [sweep.mlflow_run(f"trial-000{number}").data.tags[DESCRIPTION] for number in (0, 1)]
    assert told[0].startswith("Place 2 of 2 completed trials: validation loss 2.5000  \nrank 8")
    assert told[1].startswith("Place 1 of 2 completed trials, the winner: validation loss 2.0000")
    assert f"/runs/{sweep.record.tracking['run_id']}/artifacts/report/report.html?" in told[0]


def test_no_trial_keeps_its_place_once_another_begins(sweep: Sweep) -> None:
    sweep.run(sweep.spec("trial-0000"), [3.0, 2.0])
    sweep.tracker.close_study(sweep.record, "complete", None)
    sweep.open()
    assert DESCRIPTION in sweep.mlflow_run("trial-0000").data.tags
    sweep.tracker.start_trial(sweep.record, sweep.spec("trial-0001"))
    assert DESCRIPTION not in sweep.mlflow_run("trial-0000").data.tags
    sweep.tracker.close_study(sweep.record, "interrupted", None)
    assert DESCRIPTION not in sweep.mlflow_run("trial-0000").data.tags


def test_an_interrupted_study_is_reopened_with_a_new_run_for_the_trial(sweep: Sweep) -> None:
    sweep.run(sweep.spec("trial-0000"), [3.0, 2.0])
    sweep.tracker.start_trial(sweep.record, sweep.spec("trial-0001"))
    parent, first = sweep.record.tracking["run_id"], sweep.record.runs["trial-0001"]
    sweep.tracker.close_study(sweep.record, "interrupted", None)
    assert sweep.mlflow_run().info.status == sweep.mlflow_run("trial-0001").info.status == "KILLED"
    assert sweep.mlflow_run("trial-0001").data.tags["sweep.reason"] == "interrupted"

    sweep.open()
    assert sweep.record.tracking["run_id"] == parent
    assert sweep.mlflow_run().info.status == "RUNNING"
    sweep.run(sweep.spec("trial-0001", rank=4), [3.0, 1.0])
    assert sweep.record.runs["trial-0001"] != first
    assert sweep.tracker.store.client.get_run(first).data.tags["sweep.role"] == "attempt"
    assert len(sweep.children()) == 3
    assert sweep.mlflow_run().data.metrics["study/best_so_far"] == 1.0


def test_who_tells_no_more_leaves_no_run_open(sweep: Sweep) -> None:
    sweep.run(sweep.spec("trial-0000"), [3.0, 2.0])
    for name in ("trial-0001", "trial-0002"):
        sweep.tracker.start_trial(sweep.record, sweep.spec(name))
    store = sweep.tracker.store
    store.end(sweep.record.runs["trial-0002"], "FINISHED", {})  # by the other process
    sweep.tracker.give_way()
    runs = [sweep.mlflow_run(f"trial-000{i}") for i in range(3)]
    assert [run.info.status for run in runs] == ["FINISHED", "KILLED", "FINISHED"]
    assert [run.data.tags["sweep.role"] for run in runs] == ["trial", "attempt", "trial"]
    assert sweep.mlflow_run().info.status == "RUNNING"


def test_what_another_process_tells_too_is_an_attempt_at_the_end(sweep: Sweep) -> None:
    """It led, slept, and was in the middle of it when this one took over."""
    slept = Tracker(sweep.uri, "tiny/demo")
    slept.open_study(replace(sweep.record), sweep.folder)
    sweep.run(sweep.spec("trial-0000"), [3.0, 2.0])
    slept.start_trial(sweep.record, sweep.spec("trial-0000"))
    slept.end_trial(load_trial(sweep.folder / "trial-0000"))
    assert [run.data.tags["sweep.role"] for run in sweep.children()] == ["trial", "trial"]
    sweep.tracker.close_study(sweep.record, "complete", None)
    roles = {run.info.run_id: run.data.tags["sweep.role"] for run in sweep.children()}
    assert sorted(roles.values()) == ["attempt", "trial"]
    assert roles[sweep.record.runs["trial-0000"]] == "trial"


def test_a_trial_that_is_run_again_at_once_ends_its_earlier_run(sweep: Sweep) -> None:
    sweep.tracker.start_trial(sweep.record, sweep.spec("trial-0000"))
    first = sweep.record.runs["trial-0000"]
    sweep.run(sweep.spec("trial-0000"), [3.0, 1.0])
    earlier = sweep.tracker.store.client.get_run(first)
    assert (earlier.info.status, earlier.data.tags["sweep.role"]) == ("KILLED", "attempt")
    assert sweep.mlflow_run("trial-0000").info.status == "FINISHED"
    assert len(sweep.children()) == 2


def test_after_a_kill_the_store_catches_up_with_the_disk(sweep: Sweep) -> None:
    """Nobody said goodbye, and `study.json` knows of no trial's run."""
    ended, lost, running, unknown = (sweep.spec(f"trial-000{number}") for number in range(4))
    sweep.run(ended, [3.0, 2.5])
    sweep.tracker.start_trial(sweep.record, lost)
    sweep.evaluate(lost, [3.0, 2.0])
    sweep.ended(lost, [3.0, 2.0])
    sweep.tracker.start_trial(sweep.record, running)
    append_metrics_of(unknown, [3.0, 2.0])
    sweep.ended(unknown, [3.0, 2.0])
    half_told = sweep.record.runs["trial-0001"]
    sweep.record = replace(sweep.record, runs={})

    sweep.open()
    assert sweep.mlflow_run("trial-0000").info.status == "FINISHED"
    assert sweep.mlflow_run("trial-0001").info.run_id == half_told
    copied = sweep.mlflow_run("trial-0003")
    assert copied.info.end_time - copied.info.start_time == 60_000
    for name in ("trial-0001", "trial-0003"):
        assert sweep.mlflow_run(name).info.status == "FINISHED"
        assert sweep.history(name, "val_loss") == [(0, 3.0), (10, 2.0)]
    assert sweep.mlflow_run("trial-0002").info.status == "KILLED"
    assert sweep.mlflow_run().data.metrics["study/best_so_far"] == 2.0
    before = len(sweep.children())
    sweep.open()
    assert len(sweep.children()) == before, "a second resume has nothing to copy"


def test_what_is_told_later_has_a_later_time(sweep: Sweep) -> None:
    """Also where the telling was behind the training. MLflow sorts the points of a curve by their time."""
    spec = sweep.spec("trial-0000")
    sweep.tracker.start_trial(sweep.record, spec)
    sweep.evaluate(spec, [3.0, 2.5])
    append_metrics(Path(spec.folder), {"step": 20, "val_loss": 2.0, "seconds": 2.0})
    sweep.ended(spec, [3.0, 2.5, 2.0])
    sweep.open()
    assert sweep.history("trial-0000", "val_loss") == [(0, 3.0), (10, 2.5), (20, 2.0)]


def test_a_run_deleted_in_mlflow_comes_back_on_resume(sweep: Sweep) -> None:
    sweep.run(sweep.spec("trial-0000"), [3.0, 2.0])
    deleted = sweep.record.runs["trial-0000"]
    sweep.tracker.store.client.delete_run(deleted)
    sweep.open()
    assert sweep.tracker.problem is None
    assert sweep.record.runs["trial-0000"] != deleted
    assert sweep.mlflow_run("trial-0000").data.metrics["best_val_loss"] == 2.0


def test_a_diverged_trial_is_copied_as_it_was(sweep: Sweep) -> None:
    spec = sweep.spec("trial-0000")
    sweep.tracker.start_trial(sweep.record, spec)
    sweep.evaluate(spec, [3.0, 2.0, math.nan])
    live = sweep.history("trial-0000", "val_loss")
    sweep.ended(spec, [3.0, 2.0], "failed", "diverged")
    sweep.open()
    assert sweep.tracker.problem is None
    copied = sweep.history("trial-0000", "val_loss")
    assert str(copied) == str(live)
    assert (len(copied), sweep.mlflow_run("trial-0000").info.status) == (3, "FAILED")


def test_another_store_gets_the_whole_study(sweep: Sweep, tmp_path: Path, prepared: bytes) -> None:
    sweep.run(sweep.spec("trial-0000"), [3.0, 2.0])
    (tmp_path / "other.db").write_bytes(prepared)
    sweep.uri = f"sqlite:///{tmp_path}/other.db"
    sweep.open()
    assert [run.info.run_name for run in sweep.children()] == ["trial-0000 r8"]


def test_a_repeat_is_a_run_of_its_own_role_and_no_trial_of_optuna(sweep: Sweep) -> None:
    sweep.run(sweep.spec("trial-0002"), [3.0, 2.0])
    again = replace(sweep.spec("trial-0002"), name="confirm-0002-1", role="confirm", repeat=1)
    again.folder = str(sweep.folder / again.name)
    sweep.run(again, [3.0, 1.0])
    run = sweep.mlflow_run("confirm-0002-1")
    assert (run.info.run_name, run.info.status) == ("confirm-0002-1 r8", "FINISHED")
    tags = run.data.tags
    assert (tags["sweep.role"], tags["sweep.confirms"], tags["sweep.repeat"]) == ("confirm", "trial-0002", "1")
    assert "optuna.trial" not in tags and "optuna.state" not in tags
    assert sweep.mlflow_run().data.metrics["study/best_so_far"] == 2.0


def test_the_test_set_is_told_later_also_by_a_resume(sweep: Sweep) -> None:
    for name in ("trial-0000", "trial-0001"):
        sweep.run(sweep.spec(name), [3.0, 2.0])
    sweep.tracker.log_number("trial-0000", "test_loss", 2.25)
    sweep.tracker.problem = "MLflow is away"
    for name, loss in (("trial-0000", 2.25), ("trial-0001", 2.5)):
        record = load_trial(sweep.folder / name)
        record.metrics["test_loss"] = loss
        save_trial(sweep.folder / name, record)
        sweep.tracker.log_number(name, "test_loss", loss)
    assert "test_loss" not in sweep.mlflow_run("trial-0001").data.metrics
    for _ in range(2):
        sweep.open()
    assert sweep.history("trial-0000", "test_loss") == [(0, 2.25)]
    assert sweep.history("trial-0001", "test_loss") == [(0, 2.5)]
    assert sweep.mlflow_run("trial-0001").info.status == "FINISHED"


def test_training_goes_on_when_the_store_fails(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(sweep.tracker.store.client, "log_batch", fails)
        sweep.run(sweep.spec("trial-0000"), [3.0, 2.0])
        assert "disk is full" in str(sweep.tracker.problem)
    sweep.tracker.close_study(sweep.record, "complete", None)
    assert sweep.tracker.problem is None
    assert sweep.mlflow_run("trial-0000").data.metrics["best_val_loss"] == 2.0
    assert sweep.mlflow_run().info.status == "FINISHED"


def test_our_own_bugs_are_not_taken_for_a_failing_store(sweep: Sweep) -> None:
    with pytest.raises(KeyError):
        sweep.tracker.log_evaluation("never-started", {"step": 0, "val_loss": 1.0})


def test_a_single_run_has_no_study_above_it(sweep: Sweep, tmp_path: Path) -> None:
    single = Sweep(tmp_path, "my-run", kind="train")
    single.run(single.spec("my-run", role="train"), [3.0, 2.0])
    single.tracker.close_study(single.record, "complete", None)
    run = single.mlflow_run("my-run")
    assert single.record.tracking["run_id"] == run.info.run_id
    assert f"/runs/{run.info.run_id}?" in single.tracker.link
    assert "mlflow.parentRunId" not in run.data.tags
    assert run.info.status == "FINISHED" and run.outputs and run.outputs.model_outputs
    save_study(single.folder, single.record)
    single.open()
    assert f"/runs/{run.info.run_id}?" in single.tracker.link, "nothing new was told"


def test_a_single_run_that_was_killed_does_not_stay_running(sweep: Sweep, tmp_path: Path) -> None:
    single = Sweep(tmp_path, "my-run", kind="train")
    spec = single.spec("my-run", role="train")
    single.tracker.start_trial(single.record, spec)
    killed = single.record.runs["my-run"]
    single.open()
    single.run(spec, [3.0, 2.0])
    earlier = single.tracker.store.client.get_run(killed)
    assert (earlier.info.status, earlier.data.tags["sweep.role"]) == ("KILLED", "attempt")
    assert single.record.runs["my-run"] != killed
    assert single.mlflow_run("my-run").info.status == "FINISHED"


def test_link(sweep: Sweep) -> None:
    link = sweep.tracker.link
    assert link.startswith(f"http://127.0.0.1:5000/#/experiments/{sweep.record.tracking['experiment_id']}/runs?")
    assert link.endswith("compareRunsMode=CHART&viewStateShareKey=my-study")
    experiment = sweep.tracker.store.client.get_experiment(sweep.record.tracking["experiment_id"])
    assert json.loads(experiment.tags["mlflow.sharedViewState.my-study"])["name"] == "my-study"


def test_a_server_that_is_not_there_is_said_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://user:secret@127.0.0.1:{unused.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(UserError, match="no MLflow server answers") as error:
        Tracker(uri, "tiny/demo")
    assert time.monotonic() - start < 3
    assert "secret" not in str(error.value)
    assert len(str(error.value).splitlines()) <= 3


@pytest.mark.parametrize("uri", ["ftp://nowhere", "sqlite:////proc/none/mlflow.db", "sqlite:///not.db"])
def test_a_store_that_cannot_be_used_is_said_at_once(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("not.db").write_text("no database" * 100)
    start = time.monotonic()
    with pytest.raises(UserError, match="cannot be used") as error:
        Tracker(uri, "tiny/demo")
    assert time.monotonic() - start < 3
    assert len(str(error.value).splitlines()) <= 3
    assert [path.name for path in tmp_path.iterdir()] == ["not.db"]


def test_a_deleted_experiment(sweep: Sweep) -> None:
    sweep.tracker.store.client.delete_experiment(sweep.record.tracking["experiment_id"])
    with pytest.raises(UserError, match="was deleted"):
        Tracker(sweep.uri, "tiny/demo")
