"""The MLflow run of one trial: its curves while it trains, its numbers, adapter and status at the end."""

import json
import math
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lora_core.adapter_folder import FILES
from lora_core.records import StudyRecord, TrialRecord
from lora_core.trial import TrialSpec
from sweeps.run_values import (
    OBJECTIVE,
    SPLITS,
    STATUSES,
    Point,
    curve_points,
    data_of,
    end_tags,
    keeps_all,
    params,
    run_name,
    single_points,
    trial_tags,
)
from sweeps.store import Store, milliseconds

if TYPE_CHECKING:  # `sweeps.connect` decides how mlflow is imported
    from mlflow.entities import Run

INTERRUPTED = {"sweep.reason": "interrupted"}


class TrialRun:
    """Creates the run, or goes on with `known`, of which an earlier try got some of the way.

    `copied`: the trial has ended already and is told from its files, with its times.
    """

    def __init__(
        self, store: Store, study: StudyRecord, spec: TrialSpec | TrialRecord, copied: bool = False,
        known: "Run | None" = None,
    ) -> None:  # fmt: skip
        self.store = store
        self.study = study
        self.role = spec.role
        self.known = known
        self.began = _moment(spec.started) if copied and isinstance(spec, TrialRecord) else None
        self._created = known.info.start_time if known else 0
        self._best = math.inf
        self._held: list[Point] = []
        self._last = 0  # time of the latest point
        self._step = -1  # of the latest row
        self.run_id = known.info.run_id if known else self._create(spec)

    def _create(self, spec: TrialSpec | TrialRecord) -> str:
        parent = {} if self.study.kind == "train" else {"mlflow.parentRunId": self.study.tracking["run_id"]}
        tags = trial_tags(self.study, spec) | parent
        run_id = self.store.create_run(run_name(spec), tags, params(spec), self.began)
        add_data(self.store, run_id, self.study)
        return run_id

    def log(self, row: dict[str, float]) -> None:
        """Adds a row of `metrics.jsonl` to the curves, and the objective where it has improved; once.

        MLflow's pages lead with the metric that a run had first, so what comes before the objective waits.
        """
        if row["step"] <= self._step:
            return
        objective = [(OBJECTIVE, row["val_loss"], 0)] if self._improves(row) else []
        points = [*objective, *self._held, *curve_points(row)]
        if math.isfinite(self._best):
            self.store.log(self.run_id, points, self._at(row.get("seconds", 0.0)))
            points = []
        self._held, self._step = points, int(row["step"])

    def catch_up(self, rows: list[dict[str, float]]) -> bool:
        """Adds those of a trial's `rows` that the run lacks; False if it holds others, of another attempt."""
        told = self.store.history(self.run_id, "val_loss") if self.known else []
        written = {(int(row["step"]), str(row["val_loss"])) for row in rows}
        if not {(step, str(value)) for step, value, _ in told} <= written:
            return False
        steps = {step for step, *_ in told}
        # Those that were told live have the time of the telling, which may have been behind the training.
        self._last = max((at for *_, at in told), default=0)
        for row in rows:
            if row["step"] in steps:
                self._improves(row)
                self._step = int(row["step"])
            else:
                self.log(row)
        return True

    def end(self, record: TrialRecord) -> None:
        """The numbers known once, the adapter, and a status that tells the truth."""
        at = self._at(record.metrics.get("train_seconds", 0.0))
        model = self.add_adapter(record) if keeps_all(self.study) else None
        points = single_points(record)
        # They come all at once, so one tells of all. The objective has come before, as a curve's first.
        if not self._told({key for key, *_ in points} - {OBJECTIVE}):
            self.store.log(self.run_id, [point for point in points if point[0] not in SPLITS], at, model)
            self.store.log(self.run_id, [point for point in points if point[0] in SPLITS], at)
        self.store.log(self.run_id, self._held, at)
        if model is not None:
            self.tell_model(model, record)
        if self.known:
            self.store.untag(self.known, "sweep.reason")
        ended = None if self.began is None else max(_moment(record.ended) or 0, self._created)
        self.store.end(self.run_id, STATUSES[record.state], end_tags(record), ended)

    def _told(self, keys: set[str]) -> bool:
        return self.known is not None and not keys.isdisjoint(self.known.data.metrics)

    def interrupt(self) -> None:
        self.store.end(self.run_id, "KILLED", INTERRUPTED)

    def _improves(self, row: dict[str, float]) -> bool:
        """Notes a lower loss. Step 0 is the base model, so it is nobody's value but the base's."""
        counts = (row["step"] > 0 or self.role == "base") and -math.inf < row["val_loss"] < self._best
        self._best = row["val_loss"] if counts else self._best
        return counts

    def _at(self, seconds: float) -> int:
        """Now, or `seconds` into a copied trial. No time comes twice: of one step MLflow shows the latest."""
        now = milliseconds() if self.began is None else self.began + int(seconds * 1000)
        self._last = max(now, self._last + 1)
        return self._last

    def add_adapter(self, record: TrialRecord) -> str | None:
        """The adapter's files, and for a complete trial a model of the Models tab; returns the model's id."""
        if record.adapter is None or not Path(record.adapter).is_dir():
            return None
        files = (Path(record.adapter) / name for name in FILES)
        for file in filter(Path.is_file, files):  # and nothing that was merged or exported there since
            self.store.add_file(self.run_id, file, "adapters")
        if record.state != "complete":
            return None
        if self.known and (model := model_of(self.known)):
            return model
        name = record.name if self.study.kind == "train" else f"{self.study.study}-{record.name}"
        tags = {
            "sweep.study": self.study.study, "sweep.role": record.role, "adapter": record.adapter,
            "sha256": record.adapter_sha256 or "",
        }  # fmt: skip
        return self.store.add_model(self.run_id, name, tags, params(record), record.best_step or record.step)

    def tell_model(self, model: str, record: TrialRecord) -> None:
        """The losses of an adapter, each over its own rows: that of its checkpoint, and that on the test set."""
        for metric, split in SPLITS.items():
            step = record.best_step if metric == "val_loss" else 0
            if step is not None and self.study.data:
                self.store.log_model(self.run_id, model, metric, step, data_of(self.study, split))


def model_of(run: "Run") -> str | None:
    """The id of the model that the run has made."""
    return run.outputs.model_outputs[0].model_id if run.outputs and run.outputs.model_outputs else None


def add_data(store: Store, run_id: str, study: StudyRecord) -> None:
    """Names the study's data as the inputs of a run."""
    if study.data:
        profile = json.dumps({"rows": study.data["rows"], "tokens": study.data["tokens"]})
        data = {split: data_of(study, split) for split, count in study.data["rows"].items() if count}
        store.add_data(run_id, data, json.dumps({"uri": study.data["path"]}), profile)


def _moment(iso: str | None) -> int | None:
    return int(datetime.fromisoformat(iso).timestamp() * 1000) if iso else None
