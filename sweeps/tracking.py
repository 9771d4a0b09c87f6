"""A study as MLflow shows it: one run for the study, one nested run for each trial.

What lies on disk is the truth and MLflow the window: if the store fails during a study, training goes on, and
what was missed is made up for from disk: when the store answers again, when the study closes, or is resumed.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import yaml

from lora_core.records import StudyRecord, TrialRecord, load_metrics, load_trial, load_trials
from lora_core.trial import TrialSpec
from reports.study import Study
from sweeps import champion, view
from sweeps.connect import FAILURES, first_line
from sweeps.history import History
from sweeps.links import artifact_link, base_of, run_link, study_link
from sweeps.notes import study_note, trial_notes
from sweeps.public import public
from sweeps.run_values import SPLITS, data_of, keeps_all
from sweeps.store import Store, milliseconds
from sweeps.study_run import open_study_run
from sweeps.trial_run import INTERRUPTED, TrialRun, model_of

if TYPE_CHECKING:  # `sweeps.connect` decides how mlflow is imported
    from mlflow.entities import Run

P = ParamSpec("P")
DESCRIPTION = "mlflow.note.content"
GIVEN_UP = {**INTERRUPTED, "sweep.role": "attempt"}


def _if_reachable(
    method: Callable[Concatenate["Tracker", P], None],
) -> Callable[Concatenate["Tracker", P], None]:
    """After a first failure nothing more is tried (each try may take seconds) until `recover`."""

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

    `problem` says in one line why MLflow lacks something; it is None while MLflow lacks nothing. What `study`
    holds is replaced and never changed in place: another thread may be writing it to disk.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.store = Store(uri, experiment)
        self.problem: str | None = None
        self.copied = 0  # trials that were told from their files
        self._live: dict[str, TrialRun] = {}
        self._begun: set[str] = set()  # trials that were started since `open_study`
        self._over: set[str] = set()  # trials whose runs have ended
        self._described: list[Run] = []  # those of trials that say what place they had when the study was complete

    @property
    def link(self) -> str:
        """The page that shows the open study's trials, or the run of a single fine-tune."""
        return self.study.tracking["link"]

    def open_study(self, study: StudyRecord, folder: Path) -> None:
        """Makes the study's run, or reopens it on resume, and fills `study.tracking`.

        Trials in `folder` that ended unknown to the store are copied to it; runs that an interruption left
        open are ended.
        """
        self.prepare(study, folder)
        self.open_run()

    def prepare(self, study: StudyRecord, folder: Path) -> None:
        """The part of `open_study` that needs no store."""
        self.study, self.folder = study, folder
        self._history = History(self.store, study)
        self._earlier = {record.name for record in self._records()}
        store = self.store
        if study.kind == "train" and (run_id := study.tracking.get("run_id")):
            link = self._run_link(run_id)
        else:
            link = study_link(base_of(store.uri), store.experiment_id, study.study)
        where = {"uri": public(store.uri), "experiment": store.experiment}
        study.tracking = {**study.tracking, **where, "experiment_id": store.experiment_id, "link": link}

    def open_run(self) -> None:
        """The part of `open_study` that tells the store. A single fine-tune has no run but its trial's."""
        if self.study.kind != "train":
            self._open_run()

    def recover(self) -> bool:
        """Tries the store again after a failure, and tells it what it missed; returns whether that went well."""
        self.problem = None
        self._open_run()
        return self.problem is None

    def start_trial(self, study: StudyRecord, spec: TrialSpec) -> None:
        """A new run, also where an earlier attempt of the trial has one: MLflow lets no param change."""
        self._begun.add(spec.name)
        self._over.discard(spec.name)
        self._start_trial(study, spec)

    @_if_reachable
    def _start_trial(self, study: StudyRecord, spec: TrialSpec) -> None:
        if study.kind == "train":
            self._end_earlier(spec.name)
        self._start(spec)

    @_if_reachable
    def log_evaluation(self, name: str, row: dict[str, float]) -> None:
        """Adds a row of `metrics.jsonl` to the curves of a trial."""
        if name in self._live:
            self._live[name].log(row)
        elif name not in self._begun:
            raise KeyError(name)
        elif name not in self._over:  # its start was missed
            self._bring_up(load_trial(self._place(name)), None)

    @_if_reachable
    def end_trial(self, record: TrialRecord) -> None:
        """Final numbers, adapter and status. A trial that was not started here is in the store already."""
        name = record.name
        if name in self._begun and name not in self._live and name not in self._over:  # its start was missed
            self._bring_up(record, None)
        elif name in self._live:
            self._end(record)
        else:
            return
        self._history.add(record)

    @_if_reachable
    def log_number(self, name: str, metric: str, number: float) -> None:
        """Adds a loss to a trial that has ended, and to its model. What is missed of it now is told with the rest."""
        if name in self.study.runs:
            run, data = self.store.run(self.study.runs[name]), data_of(self.study, SPLITS[metric])
            self.store.log(run.info.run_id, [(metric, number, 0)], milliseconds(), model_of(run), data)

    @_if_reachable
    def give_way(self) -> None:
        """Another process tells the study now: the runs that this one has left open were attempts."""
        for run in self._live.values():
            if self.store.run(run.run_id).info.status == "RUNNING":  # else the other has gone on with it
                self.store.end(run.run_id, "KILLED", GIVEN_UP)
        self._live.clear()

    def close_study(self, study: StudyRecord, state: str, report_folder: Path | None) -> None:
        """Ends the study's run, and those of trials still running; `state` is `complete` or `interrupted`."""
        if self.problem is not None:
            self.recover()
        self._close(state, report_folder)
        if self.problem is not None:
            study.notes = [*study.notes, self.problem]

    @_if_reachable
    def _close(self, state: str, report_folder: Path | None) -> None:
        for run in self._live.values():
            run.interrupt()
        self._live.clear()
        if self.study.kind == "train":
            return
        if state == "complete" and not keeps_all(self.study):
            self._add_kept_adapters()
        run_id = self.study.tracking["run_id"]
        if state == "complete":
            self._give_up_strays(run_id)
        if report_folder is not None:
            self.store.add_folder(run_id, report_folder, "report")
        self._describe(run_id, state)
        self.store.end(run_id, "FINISHED" if state == "complete" else "KILLED", {})

    def _describe(self, run_id: str, state: str) -> None:
        """What was found, as the description of the study's run. Once it is complete, each trial's run says its place,
        and the winner goes to the registry."""
        study = Study(self.folder, self.study, self._records(), {})
        self.store.tag(run_id, {DESCRIPTION: study_note(study)})
        if state == "complete":
            report = artifact_link(self.store.experiment_id, run_id, "report/report.html")
            for name, note in trial_notes(study, report).items():
                if name in self.study.runs:
                    self.store.tag(self.study.runs[name], {DESCRIPTION: note})
            champion.register(self.store, study)

    def _add_kept_adapters(self) -> None:
        """Those that are there at the end of a search that does not keep all."""
        for record in self._records():
            if record.adapter is not None and (run_id := self.study.runs.get(record.name)):
                run = self.store.run(run_id)
                known = TrialRun(self.store, self.study, record, True, run)
                if model := model_of(run) or known.add_adapter(record):
                    known.tell_model(model, record)

    @_if_reachable
    def _open_run(self) -> None:
        if self.study.kind != "train":
            run_id = open_study_run(self.store, self.study)
            config = yaml.safe_dump(self.study.config, sort_keys=False, allow_unicode=True)
            self.store.tag_experiment(view.PREFIX + self.study.study, view.view_of(self.study, milliseconds()))
            self.store.add_text(run_id, config, "config.yaml")
            self.store.add_text(run_id, "\n".join(self.study.space) + "\n", "space.txt")
        self._catch_up()

    def _catch_up(self) -> None:
        """Brings the store to what lies on disk, but for trials of whose start we have yet to be told."""
        self._live.clear()
        there = self._runs_there()
        self._described = [run for run in there.values() if DESCRIPTION in run.data.tags]
        self.study.runs = {name: run.info.run_id for name, run in there.items()}
        records = [r for r in self._records() if r.name in self._earlier | self._begun]
        for record in records:
            self._bring_up(record, there.get(record.name))
        for name, run in there.items():
            if run.info.status == "RUNNING" and name not in self._live and name not in self._over:
                self.store.end(run.info.run_id, "KILLED", INTERRUPTED)
        self._history.catch_up(records)

    def _records(self) -> list[TrialRecord]:
        if self.study.kind == "train":
            return [load_trial(self.folder)] if (self.folder / "trial.json").exists() else []
        return load_trials(self.folder)

    def _place(self, name: str) -> Path:
        """The folder of a trial."""
        return self.folder if self.study.kind == "train" else self.folder / name

    def _runs_there(self) -> "dict[str, Run]":
        """The latest run of each trial. Any earlier one is of an attempt that was given up."""
        if self.study.kind == "train":
            known = self.study.runs.items()
            return {name: self.store.run(run_id) for name, run_id in known if self.store.has_run(run_id)}
        latest: dict[str, Run] = {}
        for run in self.store.children(self.study.tracking["run_id"]):
            attempt = run.data.tags["sweep.role"] == "attempt"
            if attempt and run.info.status == "RUNNING":
                self.store.end(run.info.run_id, "KILLED", INTERRUPTED)
            elif not attempt:
                self._give_up(latest.get(run.data.tags["sweep.trial"]))
                latest[run.data.tags["sweep.trial"]] = run
        return latest

    def _give_up(self, run: "Run | None") -> None:
        if run is not None:
            self.store.end(run.info.run_id, "KILLED", GIVEN_UP)

    def _give_up_strays(self, run_id: str) -> None:
        """What a process has told that was about to notice that this one leads."""
        for run in self.store.children(run_id):
            if run.data.tags["sweep.role"] != "attempt" and run.info.run_id not in self.study.runs.values():
                self._give_up(run)

    def _bring_up(self, record: TrialRecord, run: "Run | None") -> None:
        """Brings the run of one trial to what lies on disk."""
        name, ended = record.name, record.state != "running"
        if run is not None and _has_ended(run):
            self._over.add(name)
            # The test set is scored long after a trial has ended, perhaps while the store was away.
            if "test_loss" in record.metrics.keys() - run.data.metrics.keys():
                self.log_number(name, "test_loss", record.metrics["test_loss"])
        elif ended or name in self._begun:
            rows = load_metrics(self._place(name))
            if run is None or not self._go_on(record, run, rows):
                self._start(record, copied=ended)
                self._live[name].catch_up(rows)
            if ended:
                self._end(record)
                self.copied += 1

    def _go_on(self, record: TrialRecord, run: "Run", rows: list[dict[str, float]]) -> bool:
        known = TrialRun(self.store, self.study, record, record.state != "running", run)
        self._live[record.name] = known
        return known.catch_up(rows)

    def _end_earlier(self, name: str) -> None:
        """Ends the run of a single fine-tune that was interrupted, be it by a kill that told nobody."""
        run_id = self.study.runs.get(name)
        self.study.runs = {}
        if run_id is not None and self.store.has_run(run_id):
            self.store.end(run_id, "KILLED", GIVEN_UP)

    def _start(self, spec: TrialSpec | TrialRecord, copied: bool = False) -> None:
        self._forget_places()
        if spec.name in self._live:
            self._live[spec.name].interrupt()
        if earlier := self.study.runs.get(spec.name):
            self.store.tag(earlier, {"sweep.role": "attempt"})
        run = self._live[spec.name] = TrialRun(self.store, self.study, spec, copied)
        self.study.runs = {**self.study.runs, spec.name: run.run_id}
        if self.study.kind == "train":
            found = {"run_id": run.run_id, "link": self._run_link(run.run_id)}
            self.study.tracking = {**self.study.tracking, **found}

    def _run_link(self, run_id: str) -> str:
        return run_link(base_of(self.store.uri), self.store.experiment_id, run_id)

    def _forget_places(self) -> None:
        """Another trial may change the place of each."""
        for run in self._described:
            self.store.untag(run, DESCRIPTION)
        self._described = []

    def _end(self, record: TrialRecord) -> None:
        self._live[record.name].end(record)
        del self._live[record.name]
        self._over.add(record.name)


def _has_ended(run: "Run") -> bool:
    """Whether the run was told how its trial ended."""
    return run.info.status != "RUNNING" and run.data.tags.get("sweep.reason") != "interrupted"
