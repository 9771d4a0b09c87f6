"""A search from its first line to its last: what is checked, the trials, the winner, the report."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from lora_core import backend
from lora_core.batches import steps_for
from lora_core.records import StudyRecord, now, save_study
from reports.constraints import constraints_of
from sweeps import interrupts, ray_cluster
from sweeps.client import Bug, DiskFull, OutOfMemory, Worker, WorkerDied
from sweeps.closing import Closing
from sweeps.config import is_shared, study_name
from sweeps.display import Display
from sweeps.exchange import Exchange, SharedFolder, exchange_for
from sweeps.fingerprint import contents
from sweeps.members import members
from sweeps.preflight import (
    check_places,
    depths_join,
    opening,
    slot_notes,
    slots_for,
    variants,
)
from sweeps.protocol import Ready, Setup
from sweeps.requests import forget_requests, read_request
from sweeps.slots import measure, slots_line
from sweeps.space import Job, cap_num_layers
from sweeps.storage import opening_shared
from sweeps.study import Study
from sweeps.study_folder import (
    LOG,
    check_fits,
    check_joins,
    earlier_record,
    ended_on_disk,
    locked,
    resume_command,
    set_terms,
    study_record,
    write_log,
)
from sweeps.summary import search_summary
from sweeps.telling import SETTLE, Teller
from sweeps.tracking import Tracker
from sweeps.trials import ATTEMPTS, LOOK, Lost, Trials
from sweeps.trouble import Trouble, cause_of
from sweeps.warm_start import warm_start


def run(job: Job, is_member: bool = False) -> int:
    """Runs or resumes the study that the command line describes, or joins in it. `is_member`: another process has
    started this one for it, see `sweeps.member`.

    Returns the exit code: 1 if no trial completed, or if the training process died. Raises UserError for bad
    input, before anything is written.
    """
    if job.config.cluster.name == "ray" and not is_member:
        return ray_cluster.run(job)
    with interrupts.handled():
        return _run(job, is_member)


def _run(job: Job, is_member: bool) -> int:
    # A member's environment is its share already, and its folder is held by the search that has started it. Ray holds
    # none: the members that it starts are equals, in whatever database.
    shares = [{}] if is_member else backend.shares(job.config.cluster.workers)
    assists = is_member and job.config.cluster.name == "local"
    name = study_name(job.config, job.config.search.name)
    folder = Path(job.config.output_dir).absolute() / name
    check_places(job.config, folder)
    display = Display(job.config.n_trials, constraints_of(job.config.to_dict()), job.quiet)
    earlier = earlier_record(folder)
    slots, choose = slots_for(job.config, earlier)
    setup = Setup(job.config.to_dict(), slots, variants(job), depths_join(earlier))
    try:
        with (
            ExitStack() as after,
            Worker(setup, display.progress, shares[0]) as worker,
        ):
            with display.doing("Loading the model and the data"):
                ready = worker.ready()
            search = _search(name, job, ready, folder, display, assists)
            after.callback(search.study.crew.leave)  # once the worker has saved its trials, others may have them
            after.callback(search.trials.leave)
            among_equals = is_shared(job.config.storage) or (is_member and search.study.is_shared)
            is_common = among_equals and job.config.cluster.shared_folder
            with nullcontext() if assists else locked(folder, is_common):
                search.run(worker, ready.slots, choose, choose or earlier is None, shares[1:])
    except (WorkerDied, Trouble) as end:
        display.fail(str(end))
        return 1
    if not search.leads:
        return 0
    summary, found = search_summary(folder)
    display.answer(summary)
    return 0 if found else 1


def _search(name: str, job: Job, ready: Ready, folder: Path, display: Display, assists: bool) -> "Search":
    """Opens study and tracker, if nothing speaks against it, and says what is about to run."""
    job, notes = cap_num_layers(job, ready.model.depth)
    notes += slot_notes(job.config)
    with opening_shared(job.config.storage), opening(job.config.storage, job.config.tracking.uri) as undo:
        record = study_record(name, folder, job, ready, notes, resume_command(job.argv, name))
        earlier, told = warm_start(job, record, folder.parent)
        record.notes += told
        steps = steps_for(job.config.trainer, ready.data.batches)
        there = ended_on_disk(folder)
        study = Study(name, job.config, job.axes, contents(record), steps, earlier, there)
        undo.callback(study.forget)
        undo.callback(study.crew.leave)
        # What has ended stays part of the study, also where the storage was lost.
        record.n_trials = max(record.n_trials, len(study.ended), len(there))
        check = check_fits if not assists and study.take_lead() else check_joins
        exchange = exchange_for(study, job.config, record, folder, display.say)
        check(study, record, folder)
        exchange.open(study, record)
        tracker = Tracker(job.config.tracking.uri, str(job.config.tracking.experiment))
        teller = Teller(tracker, display.say, lambda: study.crew.leads)
        if study.is_shared and study.crew.leads:
            set_terms(study, record, folder)
    display.say(f"Study {name}. To resume it: {record.resume_command}")
    if not study.crew.leads:
        display.say(f"It is at work already, led by {study.crew.lead}: this process joins it.")
    display.start(ready, record.space, record.notes)
    return Search(job, study, record, folder, exchange, teller, display, assists)


class Search:
    """One run of a study that is ready to train. `assists`: a search of this machine has started this one, and speaks
    for both: it keeps the record, and may lead."""

    def __init__(
        self, job: Job, study: Study, record: StudyRecord, folder: Path, exchange: Exchange | SharedFolder,
        tracker: Teller, display: Display, assists: bool,
    ) -> None:  # fmt: skip
        self.job = job
        self.study = study
        self.study.say = display.say
        self.leads = study.crew.leads
        self.assists = assists
        # With a record of the study in it, whoever leads.
        self.has_own_folder = not (assists or job.config.cluster.shared_folder)
        self.record = record
        self.folder = folder
        self.tracker = tracker
        self.display = display
        self.trials = Trials(job, study, record, folder, exchange, tracker, display)

    def run(self, worker: Worker, slots: int, choose: bool, measuring: bool, shares: list[dict[str, str]]) -> None:
        """Trains what is missing of the study, in `slots` or in as many of them as `choose` finds best; confirms the
        winner, merges it, scores the test set, writes the report. `measuring`: whether it is to be found out how well
        slots do. `shares`: of this machine, for other workers."""
        with self._recorded(None if choose else slots):
            if self.leads or self.has_own_folder:
                forget_requests(self.folder)
                (self.folder / LOG).unlink(missing_ok=True)  # of an earlier run
            worker.between, self.trials.between = self._meanwhile, self._attend
            if slots > 1 and measuring:
                slots = self._measured(worker, choose)
            self._use(slots)
            with self.display:
                with members(self.job.argv, self.record.study, shares, self._note):
                    slots = self._train(self.trials.train, worker, slots)
                self._await_lead()
                if self.leads and self.trials.waiting:  # what the one that led has left
                    slots = self._train(self.trials.train, worker, slots)
                if self.leads:
                    self._train(self.trials.confirm, worker, slots)
            if self.leads:
                self._finish(worker)
            else:
                self._leave()

    def _leave(self) -> None:
        """Another process leads, and does what is left to do."""
        self.trials.hand_over()
        if self.has_own_folder:
            self._note("This machine has the trials that it has trained; the one that leads has all.")
            self.record.ended = now()
            self._save("complete")
        self.display.answer(f"All trials have ended. The process that leads writes the report: {self.study.crew.lead}.")

    def _heed(self) -> None:
        """Does what `lora-sweep stop` has asked for, in this folder or on a machine that does not share it."""
        here = read_request(self.folder)
        if here is not None and self.has_own_folder:
            self.study.pass_on(here)
        for request in (*filter(None, [here]), *self.study.crew.asked):
            self.trials.unwanted.update(request.trials)
            if request.study:
                raise KeyboardInterrupt(signal.SIGINT)

    def _meanwhile(self) -> None:
        """While the worker is at work."""
        self._heed()
        self.trials.carry()

    def _attend(self) -> None:
        """Does what was asked for, and what falls to this process when the one that led is gone."""
        self._heed()
        crew = self.study.crew
        if crew.leaderless and not (self.leads or self.assists):
            self.study.take_lead()
        leads = crew.leads
        if leads and not self.leads and self.trials.gather():
            self._lead()
        elif self.leads and not leads:
            self._follow()

    def _await_lead(self) -> None:
        """Trials may end while the process that leads is on its way out, or dead: this one leads then, unless another
        does."""
        sign = self.study.sign_of_lead
        while not (self.leads or self.assists or self.study.is_led(sign)):
            self.trials.exchange.check()
            with interrupts.waiting():
                time.sleep(LOOK)
            self._attend()

    def _lead(self) -> None:
        """The process that led is gone: this one does what is left to it."""
        self.leads = True
        self.display.say("The process that led the study is gone. This one leads it now.")
        if earlier := earlier_record(self.folder):
            self.record.tracking, self.record.runs = earlier.tracking, earlier.runs
        self.tracker.open_study(self.record, self.folder)
        self.trials.lead()
        self._save("running")

    def _follow(self) -> None:
        """This process gave no sign of life for so long that another one leads now."""
        self.leads = False
        self.display.say(f"Another process leads the study now: {self.study.crew.lead}.")
        self.tracker.give_way()
        if self.has_own_folder:  # which lacks trials from now on, so that `sync` must not tell of it
            self.record.tracking = {"run_id": self.record.tracking["run_id"]}
        self.tracker = self.trials.tracker = Teller(self.tracker.tracker, self.display.say, self.tracker.leads)
        if self.trials.confirming:
            raise KeyboardInterrupt(signal.SIGINT)

    def _measured(self, worker: Worker, choose: bool) -> int:
        """The slots to go on with; notes how fast they are, and whether trials in them get what they get alone."""
        try:
            with self.display.doing("Measuring how fast trials train at the same time"):
                probe = measure(worker, self.job, choose, self._note)
        except OutOfMemory as death:
            # The largest settings do not fit even alone. Others may, so the trials that have them are what fails.
            self._note(f"{write_log(self.folder, death)} Slots 1.")
            self._restart(worker, 1)
            return 1
        for line in (slots_line(probe), *probe.notes):
            self._note(line)
        self.record.environment = {**self.record.environment, "depths_together": probe.joins}
        return probe.slots

    def _use(self, slots: int | None) -> None:
        """Records how many slots there are, for a resume to use as many; None: not known yet."""
        environment = {key: value for key, value in self.record.environment.items() if key != "slots"}
        self.record.environment = environment if slots is None else {**environment, "slots": slots}
        self._save("running")

    def _train(self, train: Callable[[Worker, int], None], worker: Worker, slots: int) -> int:
        """Trains to the end, with another training process each time that one dies; returns how many slots are left."""
        while True:
            try:
                train(worker, slots)
                return slots
            except Lost:
                self.trials.give_up()
                self.display.say("Other processes have taken over trials of this one, which gave no sign of life.")
            except (Bug, DiskFull):
                raise
            except WorkerDied as death:
                slots = self._slots_after(death, slots)
            self._restart(worker, slots)

    def _restart(self, worker: Worker, slots: int) -> None:
        """Another training process, ready to train. One may be killed before it is; some in a row are too many."""
        for left in reversed(range(ATTEMPTS)):
            try:
                worker.restart(slots)
                worker.ready()
                return
            except WorkerDied as death:
                if isinstance(death, Bug | DiskFull) or not left:
                    raise
                self._note(f"{write_log(self.folder, death)} It is started again.")

    def _slots_after(self, death: WorkerDied, slots: int) -> int:
        """How many to go on with: half where memory may have run out, or to find out which trial it dies on. Raises
        `death` where going on would not help."""
        told = isinstance(death, OutOfMemory) and death.told
        if slots > 1 and isinstance(death, OutOfMemory):
            return self._fewer(death, slots)
        # Without room for the base model itself there is none for any trial.
        if told and "base" not in self.trials.running:
            self.trials.out_of_memory()
            return slots
        if not told and self.trials.died(alone=slots == 1):
            self._note(f"{write_log(self.folder, death)} It is started again.")
            return slots
        if not told and slots > 1:
            return self._fewer(death, slots)
        raise death

    def _fewer(self, death: WorkerDied, slots: int) -> int:
        self.trials.again()
        self._note(f"{write_log(self.folder, death)} Slots {slots} → {slots // 2}.")
        self._use(slots // 2)
        return slots // 2

    @contextmanager
    def _recorded(self, slots: int | None) -> Iterator[None]:
        """Whatever ends the search, its records say so."""
        lossless = f"Nothing that ended is lost. Resume with: {self.record.resume_command}"
        interrupts.say_on_leaving(lossless)
        if self.leads:
            self.tracker.open_study(self.record, self.folder)
            self.tracker.settle(SETTLE)  # a search that is killed must know its MLflow run when it is resumed
        self._use(slots)
        try:
            yield
        except BaseException as error:
            self.study.crew.part()
            with suppress(OSError):  # without room, what was written before must do
                self._save("interrupted")
            if how := self._trouble(error):
                error = Trouble(f"{how}\n{lossless}")
            self.tracker.close_study(self.record, "interrupted", None)
            with suppress(OSError):
                self._save("interrupted")
            if isinstance(error, KeyboardInterrupt):
                self.display.fail(lossless)
            raise error

    def _trouble(self, error: BaseException) -> str | None:
        """What has ended the search, in a line; None if it was the user, or a bug."""
        if isinstance(error, Trouble):
            return str(error)
        if isinstance(error, WorkerDied) and not isinstance(error, DiskFull):
            self.trials.crashed()
            return write_log(self.folder, error)
        return str(error) if isinstance(error, DiskFull) else cause_of(error)

    def _finish(self, worker: Worker) -> None:
        closing = Closing(self.job.config, self.record, self.folder, self.display, self._note)
        closing.fuse_winner(worker)
        closing.score(worker, self.tracker)
        closing.sample(worker)
        self.trials.drop_adapters()
        self.trials.exchange.finish()
        self.trials.hand_over()
        self.record.ended = now()
        self._save("complete")
        report = closing.report()
        with self.display.doing("Telling MLflow"):
            problem = self.tracker.close_study(self.record, "complete", report)
        if problem:
            self.display.answer(problem)
        self._save("complete")

    def _note(self, line: str) -> None:
        self.record.notes.append(line)
        self.display.say(line)

    def _save(self, state: str) -> None:
        self.record.state = state
        if self.study.crew.leads or self.has_own_folder:
            save_study(self.folder, self.record)
