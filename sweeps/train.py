"""One fine-tune: the same worker and the same engine as a search, with one trial in one slot."""

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from lora_core.config import TrainConfig
from lora_core.errors import UserError
from lora_core.records import ADAPTER, StudyRecord, TrialRecord, from_dict, load_trial, now, save_study
from lora_core.trial import TrialSpec
from sweeps import interrupts
from sweeps.client import Worker, WorkerDied
from sweeps.config import SweepConfig, study_name
from sweeps.display import Display
from sweeps.environment import environment
from sweeps.fits import check_fitted
from sweeps.preflight import check_places, opening
from sweeps.protocol import Fused, Go, Ready, Report, Setup
from sweeps.requests import forget_requests, read_request
from sweeps.resume import Source, continued, source_of
from sweeps.scoring import score_trial
from sweeps.space import cap_config
from sweeps.study_folder import as_typed, earlier_record, locked, write_log
from sweeps.summary import train_summary
from sweeps.telling import SETTLE, Teller
from sweeps.tracking import Tracker


def run(
    config: SweepConfig, written: set[str], argv: list[str], quiet: bool = False, folder: Path | None = None
) -> int:
    """Trains once, into `folder` (default: <output_dir>/train/<name>). `quiet`: says only what came out.

    Returns the exit code: 1 if the run diverged, or if the training process died. Raises UserError for bad
    input, before anything is written.
    """
    with interrupts.handled():
        return _run(config, written, argv, quiet, folder)


def _run(config: SweepConfig, written: set[str], argv: list[str], quiet: bool, folder: Path | None) -> int:
    check_fitted(written, [config])
    source = source_of(config) if config.resume else None
    config = continued(config, written, source) if source else config
    name = study_name(config, "train")
    folder = (folder or Path(config.output_dir) / "train" / name).absolute()
    check_places(config, folder)
    _check_new(folder, config.adapter_path)
    display = Display(1, quiet=quiet)
    try:
        with Worker(Setup(config.to_dict(), 1), display.progress) as worker:
            with display.doing("Loading the model and the data"):
                ready = worker.ready()
            if source:
                source.check(config, ready)
            return _opened(name, config, written, argv, folder, ready, display, source).train(worker)
    except WorkerDied as death:
        display.fail(str(death))
        return 1


def _check_new(folder: Path, adapter_path: str | None) -> None:
    """A run that was interrupted may be run again; one that ended is not written over, nor another's adapter."""
    begun = load_trial(folder) if (folder / "trial.json").exists() else None
    if begun is not None and begun.state != "running":
        raise UserError(f"{folder} holds a run already. Give another study= name.")
    is_own = begun is not None and begun.config["adapter_path"] == adapter_path
    if adapter_path is not None and not is_own and (Path(adapter_path) / ADAPTER).exists():
        raise UserError(f"adapter_path={adapter_path} holds an adapter already. Give another folder, or remove it.")


def _opened(
    name: str, config: SweepConfig, written: set[str], argv: list[str], folder: Path, ready: Ready, display: Display,
    source: Source | None,
) -> "Run":  # fmt: skip
    """Opens the tracker, if nothing speaks against it, and says what is about to run."""
    config, notes = cap_config(config, written, ready.model.depth)
    with opening(config.tracking.uri):
        tracker = Teller(Tracker(config.tracking.uri, str(config.tracking.experiment)), display.say)
    record = _record(name, config, ready, notes, argv)
    if earlier := earlier_record(folder):
        record.runs = earlier.runs
    display.start(ready, [], record.notes)
    spec = TrialSpec(name, "train", TrainConfig.from_dict(config.to_dict()).to_dict(), str(folder))
    if source:
        spec.repeat, spec.goes_on_from = source.trial.repeat, str(source.folder)
    return Run(config, spec, record, folder, tracker, display)


class Run:
    """A single run that is ready to train."""

    def __init__(
        self, config: SweepConfig, spec: TrialSpec, record: StudyRecord, folder: Path, tracker: Teller,
        display: Display,
    ) -> None:  # fmt: skip
        self.config = config
        self.spec = spec
        self.record = record
        self.folder = folder
        self.tracker = tracker
        self.display = display
        self.untold: str | None = None  # what MLflow lacks
        self.base = math.nan  # the loss before the first step

    def train(self, worker: Worker) -> int:
        """Trains, merges and says what came out; returns the exit code."""
        with locked(self.folder), self._recorded():
            forget_requests(self.folder)
            worker.between = self._heed
            with self.display:
                trial = self._trained(worker)
            self._score(worker, trial)
            self.tracker.end_trial(trial)
            fused = self._fused(worker, trial)
        if self.untold:
            self.display.answer(self.untold)
        self.display.answer(train_summary(self.folder, self.record, trial, self.base, fused))
        return 0 if trial.state == "complete" else 1

    def _heed(self) -> None:
        """Does what `lora-sweep stop` has asked for."""
        if (request := read_request(self.folder)) and request.study:
            raise KeyboardInterrupt(signal.SIGINT)

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Whatever ends the run, its records say so."""
        self.tracker.open_study(self.record, self.folder)
        self.tracker.start_trial(self.record, self.spec)
        self.tracker.settle(SETTLE)  # a run that is killed must know its MLflow run when it is started anew
        save_study(self.folder, self.record)
        state = "interrupted"
        onward = f"To go on with it: {self.record.resume_command}"
        interrupts.say_on_leaving(onward)
        try:
            yield
            state = "complete"
        except KeyboardInterrupt:
            self.display.fail(onward)
            raise
        except WorkerDied as death:
            raise WorkerDied(write_log(self.folder, death)) from None
        finally:
            self.record.state, self.record.ended = state, now()
            self.untold = self.tracker.close_study(self.record, state, None)
            save_study(self.folder, self.record)

    def _trained(self, worker: Worker) -> TrialRecord:
        self.display.started(self.spec)
        go = Go(start=[self.spec])
        while True:
            worker.send(go)
            report = worker.report()
            self._note(report)
            if report.ended:
                trial = from_dict(TrialRecord, report.ended[0].record)
                self.display.ended(trial)
                return trial
            go = Go()

    def _note(self, report: Report) -> None:
        for event in report.evaluated:
            if event.row["step"] == 0:
                self.base = event.row["val_loss"]
            self.tracker.log_evaluation(event.name, event.row)
            self.display.evaluated(event.name, event.row)

    def _score(self, worker: Worker, trial: TrialRecord) -> None:
        """Scores the adapter on the test set, if there are both."""
        if trial.state != "complete" or trial.adapter is None or not self.record.data["rows"].get("test"):
            return
        with self.display.doing("Scoring the test set"):
            try:
                problem = score_trial(worker, self.folder, trial, trial.adapter)
            except WorkerDied as death:
                problem = write_log(self.folder, death)
        if problem:
            self.record.notes.append(f"The test set was not scored: {problem}")
            self.display.say(self.record.notes[-1])

    def _fused(self, worker: Worker, trial: TrialRecord) -> str | None:
        """The folder of the merged model. The run is complete also where merging fails."""
        if not self.config.fuse or trial.adapter is None:
            return None
        adapter = Path(trial.adapter)
        with self.display.doing("Merging the adapter into the base model"):
            try:
                fused = worker.fuse(adapter, trial.config, adapter / "fused", self.config.fuse_quantization)
            except WorkerDied as death:
                fused = Fused(None, write_log(self.folder, death))
        self.record.notes.append(fused.note)
        self.display.answer(fused.note)
        return fused.folder


def _record(name: str, config: SweepConfig, ready: Ready, notes: list[str], argv: list[str]) -> StudyRecord:
    command = as_typed("train", *argv)
    return StudyRecord(
        study=name, kind="train", created=now(), command=command, resume_command=command, n_trials=1,
        seed=config.seed, config=config.for_record(), model=asdict(ready.model), data=asdict(ready.data),
        environment={**environment(), **ready.environment}, notes=[*ready.notes, *notes],
    )  # fmt: skip
