"""One experiment of an MLflow store: runs with their params, points of curves, files, data and models."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from sweeps.connect import first_line, open_client, sqlite_file  # isort: skip  (prepares the import of mlflow)
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from lora_core.errors import UserError
from sweeps.public import public
from sweeps.run_values import Data, Point

_AT_ONCE = 1000  # metrics that MLflow takes in one call
_LONGEST_TAG = 5000
_CONTEXT = "mlflow.data.context"
_NOT_THERE = "RESOURCE_DOES_NOT_EXIST"


def milliseconds() -> int:
    return int(time.time() * 1000)


class Store:
    """The experiment named `experiment` at `uri`, created if need be; UserError if it cannot be had."""

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = uri
        self.experiment = experiment
        self.carries_files = False  # right now, which may take long
        self.client = open_client(uri)
        try:
            self.experiment_id = self._find() or self._create()
        except MlflowException as error:
            raise UserError(
                f"tracking.uri={public(uri)}: experiment {experiment!r} cannot be opened: {first_line(error)}"
            ) from None

    @property
    def artifact_location(self) -> str:
        """Where files of runs go to."""
        return self.client.get_experiment(self.experiment_id).artifact_location

    def has_run(self, run_id: str) -> bool:
        """Whether the run is here and not deleted."""
        try:
            info = self.client.get_run(run_id).info
        except MlflowException as error:
            if error.error_code == _NOT_THERE:
                return False
            raise
        return info.lifecycle_stage == "active" and info.experiment_id == self.experiment_id

    def children(self, parent: str) -> list[Run]:
        """The runs of a study's trials, oldest first."""
        runs: list[Run] = []
        token: str | None = ""
        while token is not None:
            page = self.client.search_runs(
                [self.experiment_id], f"tags.mlflow.parentRunId = '{parent}'", max_results=1000,
                order_by=["attributes.start_time ASC"], page_token=token or None,
            )  # fmt: skip
            runs += page
            token = page.token or None
        return runs

    def run(self, run_id: str) -> Run:
        """The run with its latest metrics, tags and outputs."""
        return self.client.get_run(run_id)

    def history(self, run_id: str, metric: str) -> list[tuple[int, float, int]]:
        """The points of a curve: step, value and time."""
        points = self.client.get_metric_history(run_id, metric)
        return [(point.step, point.value, point.timestamp) for point in points]

    def create_run(self, name: str, tags: dict[str, str], params: dict[str, str], start: int | None = None) -> str:
        """A new run in state RUNNING; returns its id."""
        run = self.client.create_run(self.experiment_id, start, _cut(tags), name)
        entities = [Param(key, value[:6000]) for key, value in params.items()]
        for first in range(0, len(entities), 100):
            self.client.log_batch(run.info.run_id, params=entities[first : first + 100])
        return run.info.run_id

    def add_data(self, run_id: str, data: dict[str, Data], source: str, profile: str) -> None:
        """Names the data a run is made with, by what they are for; no row of them is stored."""
        inputs = [
            DatasetInput(Dataset(d.name, d.digest, "local", source, profile=profile), [InputTag(_CONTEXT, use)])
            for use, d in data.items()
        ]
        self.client.log_inputs(run_id, inputs)

    def log_model(self, run_id: str, model_id: str, metric: str, step: int, data: Data) -> None:
        """The run's point at `step` is a number of the model too, over these data. Told again, it stays one."""
        told = [point for point in self.client.get_metric_history(run_id, metric) if point.step == step]
        if told:
            point = Metric(metric, told[-1].value, told[-1].timestamp, step, model_id, data.name, data.digest)
            self.client.log_batch(run_id, metrics=[point])

    def log(
        self, run_id: str, points: Sequence[Point], at: int, model_id: str | None = None, data: Data | None = None
    ) -> None:
        """Points of a run's curves; given a model, numbers of that too, and given data, numbers over these."""
        over = (data.name, data.digest) if data else (None, None)
        metrics = [Metric(key, value, at, step, model_id, *over) for key, value, step in points]
        for first in range(0, len(metrics), _AT_ONCE):
            self.client.log_batch(run_id, metrics=metrics[first : first + _AT_ONCE])

    def reopen(self, run_id: str, tags: dict[str, str]) -> None:
        self.tag(run_id, tags)
        self.client.update_run(run_id, "RUNNING")

    def tag(self, run_id: str, tags: dict[str, str]) -> None:
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in _cut(tags).items()])

    def tag_experiment(self, key: str, value: str) -> None:
        self.client.set_experiment_tag(self.experiment_id, key, value)

    def untag(self, run: Run, key: str) -> None:
        if key in run.data.tags:
            self.client.delete_tag(run.info.run_id, key)

    def end(self, run_id: str, status: str, tags: dict[str, str], at: int | None = None) -> None:
        """Ends a run as FINISHED, KILLED or FAILED."""
        if tags:
            self.tag(run_id, tags)
        self.client.set_terminated(run_id, status, at)

    def add_model(self, run_id: str, name: str, tags: dict[str, str], params: dict[str, str], step: int) -> str:
        """An adapter in the Models tab, its files being those of the run; returns the model's id."""
        tags = _cut(tags) | {"mlflow.model.isExternal": "true"}
        model = self.client.create_logged_model(self.experiment_id, name, run_id, tags, params, "adapter")
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        return model.model_id

    def add_folder(self, run_id: str, folder: Path, name: str) -> None:
        with self._carrying():
            self.client.log_artifacts(run_id, str(folder), name)

    def add_file(self, run_id: str, file: Path, folder: str) -> None:
        with self._carrying():
            self.client.log_artifact(run_id, str(file), folder)

    @contextmanager
    def _carrying(self) -> Iterator[None]:
        self.carries_files = True
        try:
            yield
        finally:
            self.carries_files = False

    def files(self, run_id: str, folder: str) -> list[str]:
        """The paths of what is in a folder of a run."""
        return [info.path for info in self.client.list_artifacts(run_id, folder)]

    def fetch_file(self, run_id: str, file: str, place: Path) -> Path:
        """Brings a file of a run to the folder `place`; returns where it is. MLflow's client would have a thread do it
        that no process ends without."""
        target = place / Path(file).name
        self._artifacts_of(run_id)._download_file(file, str(target))
        return target

    def remove_files(self, run_id: str, path: str) -> None:
        """Removes a file of a run, or a folder with all that is in it, if it is there."""
        self._artifacts_of(run_id).delete_artifacts(path)

    def _artifacts_of(self, run_id: str) -> ArtifactRepository:
        return get_artifact_repository(self.client.get_run(run_id).info.artifact_uri, self.uri)

    def add_text(self, run_id: str, text: str, name: str) -> None:
        self.client.log_text(run_id, text, name)

    def _find(self) -> str | None:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None and found.lifecycle_stage != "active":
            raise UserError(
                f"tracking.experiment={self.experiment} was deleted in MLflow.\nRestore it there, or give another name."
            )
        return found.experiment_id if found else None

    def _create(self) -> str:
        try:
            return self.client.create_experiment(self.experiment, self._artifacts())
        except MlflowException:
            if found := self._find():  # Another process was faster.
                return found
            raise

    def _artifacts(self) -> str | None:
        """Beside a database that is a file, wherever the command runs; elsewhere MLflow knows the place."""
        file = sqlite_file(self.uri)
        return str(file.parent / "mlruns" / quote(self.experiment, safe="")) if file else None


def _cut(tags: dict[str, str]) -> dict[str, str]:
    return {key: value[:_LONGEST_TAG] for key, value in tags.items()}
