"""A study as MLflow shows it: one run for the study, one nested run for each trial.

What lies on disk is the truth and MLflow the window: if the store fails during a study, training goes on, and
what was missed is made up for from disk when the study closes or is resumed.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec

import yaml

from lora_core.records import StudyRecord, TrialRecord, load_metrics, load_trials
from lora_core.trial import TrialSpec
from reports.constraints import broken, constraints_of
from sweeps.connect import FAILURES, first_line, public
from sweeps.links import base_of, run_link, study_link
from sweeps.run_values import study_tags
from sweeps.store import Store, milliseconds
from sweeps.trial_run import INTERRUPTED, TrialRun, add_data

P = ParamSpec("P")


def _if_reachable(
    method: Callable[Concatenate["Tracker", P], None],
) -> Callable[Concatenate["Tracker", P], None]:
    """After a first failure nothing more is tried (each try may take seconds) until the study closes."""

    @functools.wraps(method)
    def tried(self: "Tracker", /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.problem is None:
            try:
                method(self, *args, **kwargs)
            except FAILURES as error:
                self.problem = f"MLflow could not be told everything: {first_line(error)}"

    return tried


class Tracker:
    """Tells the MLflow store at `uri` about one study. Raises UserError if the store cannot be used.

    `problem` says in one line why MLflow lacks something; it is None while MLflow lacks nothing.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.store = Store(uri, experiment)
        self.problem: str | None = None
        self._live: dict[str, TrialRun] = {}
        self._best = math.inf
        self._latest = 0

    @property
    def link(self) -> str:
        """The page that shows the open study's trials, or the run of a single fine-tune."""
        return self.study.tracking["link"]

    def open_study(self, study: StudyRecord, folder: Path) -> None:
        """Makes the study's run, or reopens it on resume, and fills `study.tracking`.

        Trials in `folder` that ended unknown to the store are copied to it; runs that an interruption left
        open are ended.
        """
        self.study, self.folder = study, folder
        store = self.store
        link = study_link(base_of(store.uri), store.experiment_id, study.study)
        study.tracking |= {"uri": public(store.uri), "experiment": store.experiment}
        study.tracking |= {"experiment_id": store.experiment_id, "link": link}
        if study.kind != "train":
            self._open_run()

    @_if_reachable
    def start_trial(self, study: StudyRecord, spec: TrialSpec) -> None:
        """A new run, also where an earlier attempt of the trial has one: MLflow lets no param change."""
        if study.kind == "train":
            self._end_earlier(spec.name)
        self._start(spec)
        if study.kind == "train":
            run_id = self._live[spec.name].run_id
            link = run_link(base_of(self.store.uri), self.store.experiment_id, run_id)
            study.tracking |= {"run_id": run_id, "link": link}

    @_if_reachable
    def log_evaluation(self, name: str, row: dict[str, float]) -> None:
        """Adds a row of `metrics.jsonl` to the curves of a trial."""
        self._live[name].log(row)

    @_if_reachable
    def end_trial(self, record: TrialRecord) -> None:
        """Final numbers, adapter and status. A trial that was not started here is in the store already."""
        if record.name in self._live:
            self._live[record.name].end(record)
            del self._live[record.name]
            self._tell_study(record)

    @_if_reachable
    def log_number(self, name: str, metric: str, number: float) -> None:
        """Adds a number to a trial that has ended."""
        self.store.log(self.study.runs[name], [(metric, number, 0)], milliseconds())

    def close_study(self, study: StudyRecord, state: str, report_folder: Path | None) -> None:
        """Ends the study's run, and those of trials still running; `state` is `complete` or `interrupted`."""
        if self.problem is not None and study.kind != "train":
            self.problem = None
            self._open_run()
        self._close(state, report_folder)
        if self.problem is not None:
            study.notes.append(self.problem)

    @_if_reachable
    def _close(self, state: str, report_folder: Path | None) -> None:
        for run in self._live.values():
            run.interrupt()
        self._live.clear()
        if self.study.kind == "train":
            return
        run_id = self.study.tracking["run_id"]
        if report_folder is not None:
            self.store.add_folder(run_id, report_folder, "report")
        self.store.end(run_id, "FINISHED" if state == "complete" else "KILLED", {})

    @_if_reachable
    def _open_run(self) -> None:
        study = self.study
        run_id = study.tracking.get("run_id")
        if run_id is not None and self.store.has_run(run_id):
            self.store.reopen(run_id, study_tags(study))
        else:
            study.runs.clear()
            run_id = study.tracking["run_id"] = self.store.create_run(study.study, study_tags(study), {})
            add_data(self.store, run_id, study)
        config = yaml.safe_dump(study.config, sort_keys=False, allow_unicode=True)
        self.store.add_text(run_id, config, "config.yaml")
        self.store.add_text(run_id, "\n".join(study.space) + "\n", "space.txt")
        self._catch_up()

    def _catch_up(self) -> None:
        """Brings the store to what lies on disk."""
        self._live.clear()
        known = self._end_orphans()
        for record in load_trials(self.folder):
            if record.name in known:
                self._note_best(record)
                self._add_late(record, known[record.name])
            elif record.state != "running":
                self._copy(record)

    def _add_late(self, record: TrialRecord, there: set[str]) -> None:
        """The test set is scored long after a trial has ended, perhaps while the store was away."""
        if "test_loss" in record.metrics.keys() - there:
            self.log_number(record.name, "test_loss", record.metrics["test_loss"])

    def _end_orphans(self) -> dict[str, set[str]]:
        """The trials whose runs have ended, and the names of their metrics. Runs still open belong to nobody."""
        known = {}
        self.study.runs.clear()  # some may have been deleted in MLflow
        for run in self.store.children(self.study.tracking["run_id"]):
            name, run_id, tags = run.data.tags["sweep.trial"], run.info.run_id, run.data.tags
            if run.info.status == "RUNNING":
                self.store.end(run_id, "KILLED", INTERRUPTED)
            if tags["sweep.role"] == "attempt":
                continue
            self.study.runs[name] = run_id
            if run.info.status != "RUNNING" and tags.get("sweep.reason") != "interrupted":
                known[name] = set(run.data.metrics)
        return known

    def _copy(self, record: TrialRecord) -> None:
        self._start(record, copied=True)
        for row in load_metrics(self.folder / record.name):
            self._live[record.name].log(row)
        self.end_trial(record)

    def _end_earlier(self, name: str) -> None:
        """Ends the run of a single fine-tune that was interrupted, be it by a kill that told nobody."""
        run_id = self.study.runs.pop(name, None)
        if run_id is not None and self.store.has_run(run_id):
            self.store.end(run_id, "KILLED", {**INTERRUPTED, "sweep.role": "attempt"})

    def _start(self, spec: TrialSpec | TrialRecord, copied: bool = False) -> None:
        if spec.name in self._live:
            self._live[spec.name].interrupt()
        if earlier := self.study.runs.get(spec.name):
            self.store.tag(earlier, {"sweep.role": "attempt"})
        run = TrialRun(self.store, self.study, spec, copied)
        self._live[spec.name] = run
        self.study.runs[spec.name] = run.run_id

    def _tell_study(self, record: TrialRecord) -> None:
        """Trials end out of order; the best so far belongs to the highest number that has ended."""
        if self._note_best(record):
            assert record.number is not None and record.value is not None
            points = [
                ("study/best_so_far", self._best, self._latest),
                ("study/trial_value", record.value, record.number),
            ]
            self.store.log(self.study.tracking["run_id"], points, milliseconds())

    def _note_best(self, record: TrialRecord) -> bool:
        """Whether the trial is one that counts in the search."""
        if record.role != "trial" or record.state != "complete":
            return False
        if record.number is None or record.value is None:
            return False
        if broken(record, constraints_of(self.study.config)):
            return False
        self._best = min(self._best, record.value)
        self._latest = max(self._latest, record.number)
        return True
