"""The trials of a search: ask, train, tell, until the study has all of them."""

from pathlib import Path

from lora_core.records import StudyRecord, TrialRecord, from_dict, load_metrics, load_trial, save_trial
from lora_core.slot import now
from lora_core.trial import TrialSpec
from sweeps.client import Worker
from sweeps.display import Display
from sweeps.preflight import trial_config
from sweeps.protocol import Go, Report
from sweeps.space import Job
from sweeps.study import Proposal, Study
from sweeps.study_folder import ended_already, has_completed, trial_name
from sweeps.tracking import Tracker

REFERENCES = ("base", "default")
ATTEMPTS = 3  # at a trial on which the training process dies


class Trials:
    """What a trial is known by everywhere is its name: `base`, `default`, `trial-0007`."""

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

    def train(self, worker: Worker, free: int) -> None:
        """Runs trials until the study has all of them. The worker trains while MLflow is told."""
        waiting = self._unfinished()
        go = Go(start=self._next(waiting, free))
        while go.start or self.running:
            self._started(go.start)
            worker.send(go)
            for spec in go.start:
                self.tracker.start_trial(self.record, spec)
            go = self._answer(worker.report(), waiting)
        if self.study.is_exhausted:
            note = f"The space is exhausted: all of its {len(self.study.ended)} settings were tried."
            self.record.notes.append(note)
            self.display.say(note)

    def crashed(self) -> None:
        """Notes that the training process died on the trials that were running."""
        for spec in self.running.values():
            if spec.number is not None:
                self.study.crashed(spec.number)

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

    def _started(self, specs: list[TrialSpec]) -> None:
        for spec in specs:
            self.running[spec.name] = spec
            self.display.started(spec)

    def _ended(self, record: TrialRecord) -> None:
        self.running.pop(record.name, None)
        if record.role == "trial":
            self.study.tell(record)
        self.tracker.end_trial(record)
        self.display.ended(record)

    def _unfinished(self) -> list[TrialSpec]:
        """Reference rows not there yet, then what an earlier run began."""
        self.display.known([load_trial(self.folder / trial_name(trial.number)) for trial in self.study.ended])
        missing = [role for role in REFERENCES if not has_completed(self.folder / role)]
        begun = [self._to_run(proposal) for proposal in self.study.interrupted()]
        return [self._reference(role) for role in missing] + [spec for spec in begun if spec]

    def _next(self, waiting: list[TrialSpec], free: int) -> list[TrialSpec]:
        specs: list[TrialSpec] = []
        while len(specs) < free:
            if waiting:
                specs.append(waiting.pop(0))
            elif (proposal := self.study.ask()) is None:
                break
            elif spec := self._to_run(proposal):
                specs.append(spec)
        return specs

    def _to_run(self, proposal: Proposal) -> TrialSpec | None:
        """The trial, unless it has ended: on disk but not in Optuna, or by killing the training process."""
        name = trial_name(proposal.number)
        config = trial_config(self.job.config_for(proposal.values))
        spec = TrialSpec(name, "trial", config, str(self.folder / name), proposal.number, params=proposal.values)
        if proposal.crashes >= ATTEMPTS:
            self.tracker.start_trial(self.record, spec)
            self._ended(_given_up(spec))
        elif record := ended_already(spec):
            self._tell_again(record)
        else:
            return spec
        return None

    def _tell_again(self, record: TrialRecord) -> None:
        assert record.number is not None
        for row in load_metrics(self.folder / record.name):
            if row["step"] > 0:
                self.study.beaten(record.number, row["step"], row["val_loss"])
        self._ended(record)

    def _reference(self, role: str) -> TrialSpec:
        config = trial_config(self.job.config)
        if role == "base":
            config["resume_adapter_file"] = None  # the model without any adapter
        return TrialSpec(role, role, config, str(self.folder / role))


def _given_up(spec: TrialSpec) -> TrialRecord:
    """Writes that the trial failed: each attempt at it took the training process down."""
    record = TrialRecord(
        spec.name, spec.role, "failed", spec.number, params=spec.params, config=spec.config, ended=now(),
        reason=f"the training process died on it {ATTEMPTS} times",
    )  # fmt: skip
    Path(spec.folder).mkdir(exist_ok=True)
    save_trial(Path(spec.folder), record)
    return record
