"""The MLflow run of one trial: its curves while it trains, its numbers, adapter and status at the end."""

import json
import math
from datetime import datetime
from pathlib import Path, PurePath

from lora_core.records import StudyRecord, TrialRecord
from lora_core.trial import TrialSpec
from sweeps.run_values import (
    OBJECTIVE,
    STATUSES,
    Point,
    curve_points,
    end_tags,
    params,
    run_name,
    single_points,
    trial_tags,
)
from sweeps.store import Store, milliseconds

INTERRUPTED = {"sweep.reason": "interrupted"}


class TrialRun:
    """Creates the run. `copied`: the trial has ended already and is told from its files, with its times."""

    def __init__(self, store: Store, study: StudyRecord, spec: TrialSpec | TrialRecord, copied: bool = False) -> None:
        self.store = store
        self.study = study
        self.role = spec.role
        self.began = _moment(spec.started) if copied and isinstance(spec, TrialRecord) else None
        parent = {} if study.kind == "train" else {"mlflow.parentRunId": study.tracking["run_id"]}
        self.run_id = store.create_run(run_name(spec), trial_tags(study, spec) | parent, params(spec), self.began)
        add_data(store, self.run_id, study)
        self._best = math.inf
        self._held: list[Point] = []
        self._last = 0  # time of the latest point

    def log(self, row: dict[str, float]) -> None:
        """Adds a row of `metrics.jsonl` to the curves, and the objective where it has improved.

        MLflow's pages lead with the metric that a run had first, so what comes before the objective waits.
        """
        objective = [(OBJECTIVE, row["val_loss"], 0)] if self._improves(row) else []
        self._held += curve_points(row)
        if math.isfinite(self._best):
            self.store.log(self.run_id, objective + self._held, self._at(row.get("seconds", 0.0)))
            self._held = []

    def end(self, record: TrialRecord) -> None:
        """The numbers known once, the adapter, and a status that tells the truth."""
        at = self._at(record.metrics.get("train_seconds", 0.0))
        model = self._add_adapter(record)
        self.store.log(self.run_id, single_points(record), at, model)
        self.store.log(self.run_id, self._held, at)
        ended = None if self.began is None else _moment(record.ended)
        self.store.end(self.run_id, STATUSES[record.state], end_tags(record), ended)

    def interrupt(self) -> None:
        self.store.end(self.run_id, "KILLED", INTERRUPTED)

    def _improves(self, row: dict[str, float]) -> bool:
        """Notes a lower loss. Step 0 is the base model, so it is nobody's value but the base's."""
        counts = (row["step"] > 0 or self.role == "base") and row["val_loss"] < self._best
        self._best = row["val_loss"] if counts else self._best
        return counts

    def _at(self, seconds: float) -> int:
        """Now, or `seconds` into a copied trial. No time comes twice: of one step MLflow shows the latest."""
        now = milliseconds() if self.began is None else self.began + int(seconds * 1000)
        self._last = max(now, self._last + 1)
        return self._last

    def _add_adapter(self, record: TrialRecord) -> str | None:
        """The adapter's files, and for a complete trial a model of the Models tab; returns the model's id."""
        if record.adapter is None or not Path(record.adapter).is_dir():
            return None
        self.store.add_folder(self.run_id, Path(record.adapter), "adapters")
        if record.state != "complete":
            return None
        name = record.name if self.study.kind == "train" else f"{self.study.study}-{record.name}"
        tags = {"sweep.study": self.study.study, "sweep.role": record.role, "adapter": record.adapter}
        return self.store.add_model(self.run_id, name, tags, params(record), record.best_step or record.step)


def add_data(store: Store, run_id: str, study: StudyRecord) -> None:
    """Names the study's data as the input of a run."""
    if study.data:
        path = study.data["path"]
        name = PurePath(path.rpartition(":")[2]).name or "data"
        profile = json.dumps({"rows": study.data["rows"], "tokens": study.data["tokens"]})
        store.add_data(run_id, name, study.data["fingerprint"], json.dumps({"uri": path}), profile)


def _moment(iso: str | None) -> int | None:
    return int(datetime.fromisoformat(iso).timestamp() * 1000) if iso else None
