"""A search from its first line to its last: ask, train, tell, until the study has its trials; then the report."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from lora_core.config import TrainConfig
from lora_core.errors import UserError
from lora_core.records import StudyRecord, TrialRecord, from_dict, load_metrics, load_study, load_trial, save_study
from lora_core.slot import now
from lora_core.trial import TrialSpec
from sweeps.client import Worker, WorkerDied
from sweeps.config import SweepConfig
from sweeps.display import Display
from sweeps.environment import environment
from sweeps.fingerprint import fingerprint
from sweeps.protocol import Go, Ready, Report, Setup
from sweeps.space import Job, cap_num_layers
from sweeps.study import Proposal, Study
from sweeps.summary import search_summary
from sweeps.tracking import Tracker

REFERENCES = ("base", "default")


def run(job: Job) -> int:
    """Runs or resumes the study that the command line describes; returns the exit code."""
    name = job.config.study or f"{job.config.search.name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = Path(job.config.output_dir).absolute() / name
    check_writable(folder.parent)
    resume = resume_command(job.argv, name)
    display = Display(job.config.n_trials)
    display.say(f"Study {name}. To resume it: {resume}")
    with Worker(Setup(job.config.to_dict(), most_slots(job.config)), display.progress) as worker:
        ready = worker.ready()
        job, notes = cap_num_layers(job, ready.model.depth)
        display.start(ready, [str(axis) for axis in job.axes], [*ready.notes, *notes])
        tracker = Tracker(job.config.tracking.uri, str(job.config.tracking.experiment))
        study = Study(name, job.config, job.axes)
        record = _record(name, job, ready, notes, resume)
        search = Search(job, study, record, folder, tracker, display)
        with search.open(), display:
            search.train(worker, ready.slots)
            search.finish(worker)
    display.say(search_summary(folder))
    return 0


class Search:
    """One run of a study. What a trial is known by everywhere is its name: `base`, `default`, `trial-0007`."""

    def __init__(
        self, job: Job, study: Study, record: StudyRecord, folder: Path, tracker: Tracker, display: Display
    ) -> None:
        self.job = job
        self.study = study
        self.record = record
        self.folder = folder
        self.tracker = tracker
        self.display = display
        self.running: dict[str, TrialSpec] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Whatever ends the search, its records say so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tracker.open_study(self.record, self.folder)
        self._save("running")
        try:
            yield
        except BaseException as error:
            self._save("interrupted")
            self.tracker.close_study(self.record, "interrupted", None)
            if isinstance(error, WorkerDied):
                raise UserError(
                    f"{error}\nNothing that ended is lost. Resume with: {self.record.resume_command}"
                ) from None
            raise

    def train(self, worker: Worker, free: int) -> None:
        """Runs trials until the study has all of them. The worker trains while MLflow is told."""
        waiting = self._unfinished()
        go = Go(start=self._next(waiting, free))
        while go.start or self.running:
            self._started(go.start)
            worker.send(go)
            for spec in go.start:
                self.tracker.start_trial(self.record, spec)
            report = worker.report()
            go = self._answer(report, waiting)
        if self.study.is_exhausted:
            self.record.notes.append(f"The space is exhausted: all of its {len(self.study.ended)} settings were tried.")
            self.display.say(self.record.notes[-1])

    def finish(self, worker: Worker) -> None:
        """Fuses the winner, writes the report, closes the records."""
        from reports.writer import build

        self._fuse_winner(worker)
        self.record.ended = now()
        self._save("complete")
        build(self.folder)
        self.tracker.close_study(self.record, "complete", self.folder / "report")
        self._save("complete")

    def _answer(self, report: Report, waiting: list[TrialSpec]) -> Go:
        go = Go()
        for event in report.evaluated:
            self.tracker.log_evaluation(event.name, event.row)
            self.display.evaluated(event.name, event.row)
            if self._beaten(event.name, event.row):
                go.stop.append(event.name)
        for ended in report.ended:
            self._ended(from_dict(TrialRecord, ended.record))
        go.stop = [name for name in go.stop if name in self.running]
        go.start = self._next(waiting, report.free)
        return go

    def _beaten(self, name: str, row: dict[str, float]) -> bool:
        spec = self.running[name]
        if spec.number is None or row["step"] == 0:
            return False
        return self.study.beaten(spec.number, int(row["step"]), row["val_loss"])

    def _ended(self, record: TrialRecord) -> None:
        del self.running[record.name]
        if record.role == "trial":
            self.study.tell(record)
        self.tracker.end_trial(record)
        self.display.ended(record)

    def _started(self, specs: list[TrialSpec]) -> None:
        for spec in specs:
            self.running[spec.name] = spec
            self.display.started(spec.name, spec.config["trainer"]["iters"] or 0)

    def _next(self, waiting: list[TrialSpec], free: int) -> list[TrialSpec]:
        specs: list[TrialSpec] = []
        while len(specs) < free:
            spec = waiting.pop(0) if waiting else self._asked()
            if spec is None:
                break
            specs.append(spec)
        return specs

    def _asked(self) -> TrialSpec | None:
        proposal = self.study.ask()
        return self._spec(proposal) if proposal else None

    def _unfinished(self) -> list[TrialSpec]:
        """Reference rows not there yet, then what an earlier run began. A trial that ended on disk is told."""
        waiting = [self._reference(role) for role in REFERENCES if not self._is_complete(role)]
        for proposal in self.study.interrupted():
            spec = self._spec(proposal)
            on_disk = self._ended_on_disk(spec)
            if on_disk:
                self._tell_again(on_disk)
            else:
                waiting.append(spec)
        for trial in self.study.ended:
            self.display.ended(load_trial(self.folder / trial_name(trial.number)))
        return waiting

    def _tell_again(self, record: TrialRecord) -> None:
        assert record.number is not None
        for row in load_metrics(self.folder / record.name):
            if row["step"] > 0:
                self.study.beaten(record.number, row["step"], row["val_loss"])
        self.study.tell(record)
        self.tracker.end_trial(record)

    def _is_complete(self, role: str) -> bool:
        return (self.folder / role / "trial.json").exists() and load_trial(self.folder / role).state == "complete"

    def _ended_on_disk(self, spec: TrialSpec) -> TrialRecord | None:
        if not (Path(spec.folder) / "trial.json").exists():
            return None
        record = load_trial(Path(spec.folder))
        return record if record.state != "running" and record.params == spec.params else None

    def _reference(self, role: str) -> TrialSpec:
        return TrialSpec(role, role, _trial_config(self.job.config), str(self.folder / role))

    def _spec(self, proposal: Proposal) -> TrialSpec:
        name = trial_name(proposal.number)
        config = _trial_config(self.job.config_for(proposal.values))
        return TrialSpec(name, "trial", config, str(self.folder / name), proposal.number, params=proposal.values)

    def _fuse_winner(self, worker: Worker) -> None:
        from reports.study import load

        best = load(self.folder).winner
        if best is None or not self.job.config.fuse or best.adapter is None:
            return
        fused = worker.fuse(Path(best.adapter), best.config, self.folder / "best")
        if fused.folder is None:
            self.record.notes.append(f"The winner was not merged into the base model: {fused.reason}.")

    def _save(self, state: str) -> None:
        self.record.state = state
        save_study(self.folder, self.record)


def trial_name(number: int) -> str:
    return f"trial-{number:04d}"


def _trial_config(config: SweepConfig) -> dict[str, Any]:
    """A trial's own configuration: in a search each trial has its own adapter folder, and only the winner is
    merged."""
    return TrainConfig.from_dict(replace(config, adapter_path=None, fuse=False).to_dict()).to_dict()


def most_slots(config: SweepConfig) -> int:
    """A search that learns from ended trials must not start most of them blindly."""
    adaptive = config.search.sampler["name"] != "random" or config.search.pruner["name"] != "none"
    return max(1, config.n_trials // 4) if adaptive else config.n_trials


def resume_command(argv: list[str], name: str) -> str:
    """What to type to go on with the study: the same overrides and its name."""
    overrides = [text for text in argv if not text.startswith("study=")]
    return shlex.join(["lora-sweep", "search", *overrides, f"study={name}"])


def check_writable(folder: Path) -> None:
    """Raises UserError if nothing can be written to `folder`, without creating anything."""
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"output_dir: {nearest} cannot be written to. Expected a folder that can.")


def _record(name: str, job: Job, ready: Ready, notes: list[str], resume: str) -> StudyRecord:
    """The study's record: the old one, if there is one, brought up to date."""
    folder = Path(job.config.output_dir).absolute() / name
    old = load_study(folder) if (folder / "study.json").exists() else StudyRecord(name, created=now())
    config = job.config
    return replace(
        old,
        command=shlex.join(["lora-sweep", "search", *job.argv]),
        resume_command=resume,
        ended=None,
        n_trials=config.n_trials,
        seed=config.seed,
        space=[str(axis) for axis in job.axes],
        axes=[axis.to_dict() for axis in job.axes],
        sampler=config.search.sampler["name"],
        pruner=config.search.pruner["name"],
        storage=config.storage,
        fingerprint=fingerprint(config, job.axes),
        config=config.to_dict(),
        model=asdict(ready.model),
        data=asdict(ready.data),
        environment={**environment(), **ready.environment},
        notes=[*ready.notes, *notes],
    )
