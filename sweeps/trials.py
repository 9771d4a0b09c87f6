"""The trials of a search: ask, train, tell, until the study has all of them."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lora_core.records import (
    StudyRecord,
    TrialRecord,
    from_dict,
    load_metrics,
    load_trial,
    now,
    remove_checkpoint,
    save_trial,
)
from lora_core.trial import TrialSpec
from sweeps import interrupts
from sweeps.client import Worker
from sweeps.confirm import rounds
from sweeps.display import Display
from sweeps.exchange import Exchange, SharedFolder
from sweeps.keep import drop_adapters
from sweeps.preflight import trial_config
from sweeps.protocol import Go, Report
from sweeps.space import Job
from sweeps.study import Evaluation, Proposal, Study, trial_name
from sweeps.study_folder import ended_already, has_completed
from sweeps.telling import Teller

REFERENCES = ("base", "default")
LOOK = 0.5  # seconds between two looks at trials of other processes,
MOMENT = 0.1  # and at what is on its way to them
PARTING = 10.0  # seconds that one that is interrupted takes to hand over what it has
ATTEMPTS = 3  # at a trial on which the training process dies
OUT_OF_MEMORY = "out of memory"
DIED = f"the training process died on it {ATTEMPTS} times"


class Lost(Exception):
    """Another process has taken over trials that are running here."""


class Trials:
    """What a trial is known by everywhere is its name: `base`, `default`, `trial-0007`, `confirm-0007-1`."""

    def __init__(
        self, job: Job, study: Study, record: StudyRecord, folder: Path, exchange: Exchange | SharedFolder,
        tracker: Teller, display: Display,
    ) -> None:  # fmt: skip
        self.job = job
        self.study = study
        self.record = record
        self.folder = folder
        self.exchange = exchange
        self.tracker = tracker
        self.display = display
        self.running: dict[str, TrialSpec] = {}
        self._here: set[str] = set()  # trials that were started by this process, so that nobody has more of them
        self._deaths: Counter[str] = Counter()  # of the training process, by trial that was running
        self.unwanted: set[str] = set()  # trials that the user wants ended
        # Those that come before any new one, as soon as their checkpoints are here; None: not looked for yet.
        self.waiting: list[TrialSpec] | None = None
        self.confirming = False  # no new ones any more
        self.between: Callable[[], None] = lambda: None  # called where nothing is half done
        self._noticed: set[int] = set()  # trials whose end was shown and told
        self._untold: list[TrialRecord] = []  # ended here, but other machines could not have them yet

    @property
    def tells(self) -> bool:
        """Whether this process leads, and has all that had ended before."""
        return self.tracker.is_open

    def train(self, worker: Worker, free: int) -> None:
        """Runs trials until the study has all of them. The worker trains while MLflow is told.

        Where the worker dies, `died`, `again` or `out_of_memory` and another call with a new worker go on, where trials
        are lost to another process, `give_up`. Trials of other processes are waited for, as they may be left behind.
        """
        if self.waiting is None:
            self.waiting = self._unfinished()
        self._run(worker, free)
        while not self._is_over():
            self._run_later(worker, free)
        if self.study.is_exhausted:
            note = f"The space is exhausted: all of its {len(self.study.ended)} settings were tried."
            if note not in self.record.notes:
                self.record.notes.append(note)
                self.display.say(note)

    def _is_over(self) -> bool:
        """Whether no trial is at work anywhere, and those of others are known here."""
        over = not self.waiting and self.study.is_over  # first: one that ends while others are looked at is for later
        self._tell()
        self._notice_others()
        self.exchange.check()
        all_known = all(trial.number in self._noticed for trial in self.study.ended)
        return over and (all_known or not self.study.is_shared)

    def confirm(self, worker: Worker, free: int) -> None:
        """Trains the best again with other seeds, those of one seed together: they share the order of the data.

        To be called after `train`. What has ended on disk stays as it is, so that another call goes on."""
        self.confirming = True
        missing = rounds(self.folder, self.job.config.search.confirm)
        self.display.confirming(missing)
        for specs in missing:
            self.waiting = specs
            self._run(worker, free)
            while self.waiting:
                self._run_later(worker, free)

    def _run_later(self, worker: Worker, free: int) -> None:
        with interrupts.waiting():
            time.sleep(LOOK)
        self.between()
        self._run(worker, free)

    def _run(self, worker: Worker, free: int) -> None:
        go = Go(start=self._next(free))
        while go.start or self.running:
            self._started(go.start)
            worker.send(go)
            for spec in go.start:
                self.tracker.start_trial(self.record, spec)
            go = self._answer(worker.report())

    def crashed(self) -> None:
        """Notes that the training process died on the trials that were running."""
        for spec in self.running.values():
            if spec.role == "trial" and spec.number is not None:
                self.study.crashed(spec.number)

    def died(self, alone: bool) -> bool:
        """The training process died; what was running is to run again. A trial that it died on too often has failed
        if it ran `alone`; False if it did not, or cannot be done without: then nothing has changed."""
        suspects = [spec for spec in self.running.values() if self._deaths[spec.name] + 1 >= ATTEMPTS]
        if suspects and (not alone or suspects[0].number is None):
            return False
        self.crashed()
        self._deaths.update(list(self.running))
        for spec in suspects:
            self._ended(_failed(spec, DIED))
        self.again()
        return True

    def again(self) -> None:
        """The trials that a worker left unfinished are to be run again, before any other, from their checkpoints."""
        self.waiting = [*self.running.values(), *(self.waiting or [])]
        self.running = {}
        self.display.halted()

    def give_up(self) -> None:
        """Leaves trials to the processes that have taken them over; what else was running is to run again."""
        lost = self.study.lost()
        for number in lost:
            self.study.give_up(number)
            self._here.discard(trial_name(number))
            self.exchange.discard(trial_name(number))
        self._untold = [record for record in self._untold if record.role != "trial" or record.number not in lost]
        self.again()
        self.waiting = [spec for spec in self.waiting or [] if spec.role != "trial" or spec.number not in lost]

    def gather(self) -> bool:
        """Whether all that has ended is in the folder of this process, which is to lead; it is brought there beside the
        training."""
        return self.exchange.gather([trial_name(trial.number) for trial in self.study.ended])

    def lead(self) -> None:
        """The process that led is gone, and this one tells and finishes the study from now on."""
        for spec in self.running.values():
            self._tell_so_far(spec)
        self.waiting = [*self._references(), *(self.waiting or [])]

    def out_of_memory(self) -> None:
        """The trials that were running have failed: there was no room for them. Any other may still fit."""
        for spec in list(self.running.values()):
            self._ended(_failed(spec, OUT_OF_MEMORY))

    def drop_adapters(self, at_least: int = 0) -> None:
        """Deletes the adapters that are not to be kept, here and where other machines get them."""
        if (keep := self.job.config.tracking.keep) != "all":
            for name in drop_adapters(self.folder, max(int(keep), at_least)):
                self.exchange.publish_again(name)

    def carry(self) -> None:
        """Has the checkpoints of what is running here where other machines get them, beside the training."""
        self.exchange.carry(self.running, lambda: not self.study.lost())

    def leave(self) -> None:
        """Once the training process has saved what was running: other machines may go on with it. Takes a few seconds
        to hand over what they need for that."""
        self.exchange.part([*self.running, *(spec.name for spec in self.waiting or [])])
        until = time.monotonic() + PARTING
        try:
            while not self._is_handed_over() and time.monotonic() < until:
                time.sleep(MOMENT)  # this process is interrupted already
        finally:
            self.exchange.close()

    def hand_over(self) -> None:
        """Waits until other machines have all that they need of this one, if MLflow answers."""
        while not self._is_handed_over():
            with interrupts.waiting():
                time.sleep(MOMENT)

    def _is_handed_over(self) -> bool:
        self._tell()
        return self.exchange.problem is not None or (not self._untold and self.exchange.is_idle)

    def _answer(self, report: Report) -> Go:
        if self.study.lost():
            raise Lost
        go = Go()
        for event in report.evaluated:
            self.tracker.log_evaluation(event.name, event.row)
            self.display.evaluated(event.name, event.row)
        beaten = self._beaten(report)
        for ended in report.ended:
            self._ended(from_dict(TrialRecord, ended.record))
        by_hand = self.unwanted & self.running.keys()
        go.stop_by_hand = sorted(by_hand)
        go.stop = [name for name in beaten if name in self.running and name not in by_hand]
        self._tell()
        self._notice_others()
        self.between()
        go.start = self._next(report.free)
        return go

    def _beaten(self, report: Report) -> list[str]:
        """The trials to be stopped. None is in its warm-up: losses at a rate that still rises tell little."""
        rows: dict[str, Evaluation] = {}
        for event in report.evaluated:
            spec, step = self.running[event.name], int(event.row["step"])
            if spec.role != "trial" or spec.number is None or step == 0:
                continue
            row = Evaluation(spec.number, step, event.row["val_loss"])
            if event.again:
                self.study.report(row)  # the verdict on it was given before the interruption
            else:
                rows[spec.name] = row
        beaten = self.study.judge(list(rows.values()))
        return [name for name, row in rows.items() if row.number in beaten and row.step > self._warm_up(name)]

    def _warm_up(self, name: str) -> int:
        """How many steps its learning rate rises."""
        return round(self.running[name].config["optimizer"]["warmup"] * self.study.steps)

    def _started(self, specs: list[TrialSpec]) -> None:
        for spec in specs:
            self.running[spec.name] = spec
            self._here.add(spec.name)
            self.display.started(spec)

    def _ended(self, record: TrialRecord) -> None:
        self.running.pop(record.name, None)
        if record.role == "trial" and record.number is not None:
            self._noticed.add(record.number)
        self._untold.append(record)
        self._tell()
        self.tracker.end_trial(record)
        self.display.ended(record)
        self.drop_adapters(at_least=self.job.config.search.confirm.k)

    def _tell(self) -> None:
        """What the study is told of, other machines can have; so that comes first, and where it fails, it waits."""
        while self._untold and self.exchange.publish(self._untold[0].name):
            record = self._untold.pop(0)
            if record.role == "trial" and record.number is not None:
                self.study.tell(record)
            self.exchange.release(record.name)

    def _unfinished(self) -> list[TrialSpec]:
        """The reference rows that are not there yet, trained by the one process that leads."""
        ended = self.study.ended
        self._noticed = {trial.number for trial in ended}
        self.display.known([self.study.record(trial) for trial in ended])
        return self._references() if self.tells else []

    def _references(self) -> list[TrialSpec]:
        return [self._reference(role) for role in REFERENCES if not has_completed(self.folder / role)]

    def _notice_others(self) -> None:
        """Shows the trials that other processes have ended since the last look, and tells them where this one leads."""
        if not self.study.is_shared:
            return
        for trial in [trial for trial in self.study.ended if trial.number not in self._noticed]:
            record, folder = self.study.record(trial), self.folder / trial_name(trial.number)
            if self.tells:
                if not self.exchange.fetch(record.name):
                    continue
                record = load_trial(folder)
                spec = TrialSpec(record.name, "trial", record.config, str(folder), trial.number, 0, record.params)
                self._tell_so_far(spec)
                self.tracker.end_trial(record)
            self._noticed.add(trial.number)
            self.display.ended(record)

    def _tell_so_far(self, spec: TrialSpec) -> None:
        self.tracker.start_trial(self.record, spec)
        for row in load_metrics(Path(spec.folder)):
            self.tracker.log_evaluation(spec.name, row)

    def _next(self, free: int) -> list[TrialSpec]:
        """The trials to start now. A slot waits for one whose checkpoint is on its way."""
        waiting = self.waiting or []
        specs = [spec for spec in waiting[:free] if self._can_start(spec)]
        self.waiting = [spec for spec in waiting if spec not in specs]
        while len(specs) + len(self.waiting) < free:
            if self.confirming or (proposal := self.study.ask()) is None:
                break
            if spec := self._to_run(proposal):
                (specs if not proposal.begun or self._can_start(spec) else self.waiting).append(spec)
        return specs

    def _can_start(self, spec: TrialSpec) -> bool:
        """Whether its latest checkpoint is here, if there is any."""
        return spec.name in self._here or self.exchange.bring(spec.name)

    def _to_run(self, proposal: Proposal) -> TrialSpec | None:
        """The trial, unless it has ended: on disk but not in Optuna, or by killing the training process."""
        name = trial_name(proposal.number)
        config = trial_config(self.job.config_for(proposal.values))
        spec = TrialSpec(name, "trial", config, str(self.folder / name), proposal.number, params=proposal.values)
        if proposal.crashes >= ATTEMPTS:
            self.tracker.start_trial(self.record, spec)
            self._ended(_failed(spec, DIED))
        elif record := ended_already(spec):
            self._tell_again(record)
        else:
            self._deaths[spec.name] = proposal.crashes
            return spec
        return None

    def _tell_again(self, record: TrialRecord) -> None:
        assert record.number is not None
        for row in load_metrics(self.folder / record.name):
            if row["step"] > 0:
                self.study.report(Evaluation(record.number, row["step"], row["val_loss"]))
        self._ended(record)

    def _reference(self, role: str) -> TrialSpec:
        config = trial_config(self.job.config)
        if role == "base":
            config["resume_adapter_file"] = None  # the model without any adapter
        return TrialSpec(role, role, config, str(self.folder / role))


def _failed(spec: TrialSpec, reason: str) -> TrialRecord:
    """Writes that the trial failed where the worker could not, keeping what it has written of it."""
    folder = Path(spec.folder)
    folder.mkdir(exist_ok=True)
    begun = TrialRecord(spec.name, spec.role, number=spec.number, params=spec.params, config=spec.config)
    begun.repeat = spec.repeat
    if (folder / "trial.json").exists() and load_trial(folder).params == spec.params:
        begun = load_trial(folder)
    record = replace(begun, state="failed", reason=reason, ended=now())
    save_trial(folder, record)
    remove_checkpoint(folder)
    return record
