"""A search from its first line to its last: what is checked, the trials, the winner, the report."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from lora_core.records import StudyRecord, save_study
from lora_core.slot import now
from reports.wording import typed
from sweeps.client import Worker, WorkerDied
from sweeps.display import Display
from sweeps.preflight import (
    check_places,
    most_slots,
    opening,
    slot_notes,
    variants,
)
from sweeps.protocol import Ready, Setup
from sweeps.space import Job, cap_num_layers
from sweeps.study import Study
from sweeps.study_folder import (
    check_fits,
    contents,
    earlier_record,
    locked,
    resume_command,
    study_record,
    write_log,
)
from sweeps.summary import search_summary
from sweeps.tracking import Tracker
from sweeps.trials import Trials


def run(job: Job) -> int:
    """Runs or resumes the study that the command line describes.

    Returns the exit code: 1 if no trial completed, or if the training process died. Raises UserError for bad
    input, before anything is written.
    """
    name = job.config.study or f"{job.config.search.name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = Path(job.config.output_dir).absolute() / name
    check_places(job.config, folder)
    display = Display(job.config.n_trials)
    setup = Setup(job.config.to_dict(), most_slots(job.config, earlier_record(folder)), variants(job))
    try:
        with Worker(setup, display.progress) as worker:
            with display.doing("Loading the model and the data"):
                ready = worker.ready()
            _search(name, job, ready, folder, display).run(worker, ready.slots)
    except WorkerDied as death:
        display.fail(str(death))
        return 1
    summary, found = search_summary(folder)
    display.say(summary)
    return 0 if found else 1


def _search(name: str, job: Job, ready: Ready, folder: Path, display: Display) -> "Search":
    """Opens study and tracker, if nothing speaks against it, and says what is about to run."""
    job, notes = cap_num_layers(job, ready.model.depth)
    notes += slot_notes(job.config)
    with opening(job.config.storage, job.config.tracking.uri) as undo:
        study = Study(name, job.config, job.axes, contents(asdict(ready.model), asdict(ready.data)))
        undo.callback(study.forget)
        record = study_record(name, folder, job, ready, notes, resume_command(job.argv, name))
        record.n_trials = max(record.n_trials, len(study.ended))  # what has ended stays part of the study
        check_fits(study, record, folder)
        tracker = Tracker(job.config.tracking.uri, str(job.config.tracking.experiment))
    display.say(f"Study {name}. To resume it: {record.resume_command}")
    display.start(ready, record.space, record.notes)
    return Search(job, study, record, folder, tracker, display)


class Search:
    """One run of a study that is ready to train."""

    def __init__(
        self, job: Job, study: Study, record: StudyRecord, folder: Path, tracker: Tracker, display: Display
    ) -> None:
        self.job = job
        self.record = record
        self.folder = folder
        self.tracker = tracker
        self.display = display
        self.trials = Trials(job, study, record, folder, tracker, display)

    def run(self, worker: Worker, slots: int) -> None:
        """Trains what is missing of the study, merges the winner, writes the report."""
        with locked(self.folder), self._recorded():
            with self.display:
                self.trials.train(worker, slots)
            self._finish(worker)

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Whatever ends the search, its records say so."""
        self.tracker.open_study(self.record, self.folder)
        self._save("running")
        try:
            yield
        except BaseException as error:
            self._save("interrupted")
            if isinstance(error, WorkerDied):
                error = self._death(error)
            self.tracker.close_study(self.record, "interrupted", None)
            if isinstance(error, KeyboardInterrupt):
                self.display.fail(f"Nothing that ended is lost. Resume with: {self.record.resume_command}")
            raise error

    def _death(self, death: WorkerDied) -> WorkerDied:
        self.trials.crashed()
        how = write_log(self.folder, death)
        return WorkerDied(f"{how}\nNothing that ended is lost. Resume with: {self.record.resume_command}")

    def _finish(self, worker: Worker) -> None:
        """What fails here is said, and can be done again: the trials are complete."""
        self._fuse_winner(worker)
        self.record.ended = now()
        self._save("complete")
        report = self._report()
        self.tracker.close_study(self.record, "complete", report)
        if self.tracker.problem:
            self.display.say(self.tracker.problem)
        self._save("complete")

    def _fuse_winner(self, worker: Worker) -> None:
        from reports.study import load

        best = load(self.folder).winner
        if best is None or not self.job.config.fuse or best.adapter is None:
            return
        with self.display.doing("Merging the winner into the base model"):
            try:
                problem = worker.fuse(Path(best.adapter), best.config, self.folder / "best").reason
            except WorkerDied as death:
                problem = write_log(self.folder, death)
        if problem:
            self._note(f"The winner was not merged into the base model: {problem}")

    def _report(self) -> Path | None:
        from reports.writer import build

        try:
            with self.display.doing("Writing the report"):
                return build(self.folder).parent
        except Exception as error:  # whatever it is, hours of training must not look lost for it
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            again = typed(
                shlex.join(["lora-sweep", "report", self.record.study, "--output-dir", str(self.folder.parent)])
            )
            self._note(f"The report could not be written ({reason}). Once mended: {again}")
            return None

    def _note(self, line: str) -> None:
        self.record.notes.append(line)
        self.display.say(line)

    def _save(self, state: str) -> None:
        self.record.state = state
        save_study(self.folder, self.record)
