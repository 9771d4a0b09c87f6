"""How one machine gets at what another has trained: in a folder that all of them see, or through MLflow, where each
writes to a folder of its own (`cluster.shared_folder=false`).

A trial that has ended becomes a file of the study's run, trials/trial-0007.zip, before the study is told of it. So
whatever has ended according to the study can be had.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from lora_core import disk
from lora_core.errors import UserError
from lora_core.records import StudyRecord
from sweeps.aside import Aside
from sweeps.checkpoints import Checkpoints
from sweeps.config import SweepConfig
from sweeps.connect import FAILURES, first_line
from sweeps.parcels import ON_ITS_WAY, Parcels
from sweeps.public import public
from sweeps.standing import has_ended, shares_folder
from sweeps.store import Store
from sweeps.study import Study, trial_name
from sweeps.study_folder import check_own_folder
from sweeps.study_run import open_study_run
from sweeps.trouble import Trouble

ENDED = "trials"  # the folder among the files of the run
PATIENCE = 600.0  # seconds that a machine with nothing else left to do waits for a server, or for a drive


class SharedFolder:
    """Nothing has to be handed over: what one machine writes to `folder`, all of them see."""

    problem: str | None = None
    is_idle = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._missed: dict[str, float] = {}  # trials that are not to be seen yet, and since when

    def open(self, study: Study, record: StudyRecord) -> None:
        """It is there."""

    def publish(self, name: str) -> bool:
        return True

    def publish_again(self, name: str) -> None:
        """It has changed for all."""

    def fetch(self, name: str) -> bool:
        if has_ended(self.folder / name):
            self._missed.pop(name, None)
            return True
        self._missed.setdefault(name, time.monotonic())  # a network drive may be slower than the database
        return False

    def release(self, name: str) -> None:
        """It has removed its checkpoint itself."""

    def gather(self, names: list[str]) -> bool:
        return all([self.fetch(name) for name in names])

    def carry(self, names: Iterable[str], still: Callable[[], bool]) -> None:
        """Their checkpoints are where all see them."""

    def bring(self, name: str) -> bool:
        return True

    def discard(self, name: str) -> None:
        """Others go on with it in this very folder."""

    def check(self) -> None:
        """Raises Trouble where waiting for the drive has been in vain."""
        for name, since in self._missed.items():
            if time.monotonic() - since > PATIENCE and not has_ended(self.folder / name):
                raise Trouble(f"{self.folder / name} cannot be seen, though another machine has ended that trial.")

    def part(self, names: Iterable[str]) -> None:
        """The same."""

    def finish(self) -> None:
        """A trial removes what it needs no more."""

    def close(self) -> None:
        """Nothing is open."""


class Exchange:
    """Has `parcels` carry trials. `workers`: how many processes of this machine write to its folder.

    What is published or fetched goes its way beside the training, so that it may be done only when asked for again."""

    def __init__(self, parcels: Parcels, workers: int = 1) -> None:
        self.parcels = parcels
        self.folder = parcels.folder
        self.workers = workers
        self.checkpoints = Checkpoints(parcels)
        self.aside = Aside()

    @property
    def problem(self) -> str | None:
        """Why nothing is carried now."""
        return self.parcels.problem

    @property
    def is_idle(self) -> bool:
        """Whether nothing is on its way, or about to be."""
        return self.aside.is_idle and self.checkpoints.are_idle

    def open(self, study: Study, record: StudyRecord) -> None:
        """The machine that leads makes the run, and hands over what it has already; those that join look for the run.
        Raises UserError where the server does not have it, or would not carry its files."""
        store, uri = self.parcels.store, f"tracking.uri={public(self.parcels.store.uri)}"
        record.tracking = record.tracking | ({"run_id": self.parcels.run_id} if self.parcels.run_id else {})
        disk.remove_orphans(self.folder, ON_ITS_WAY)
        try:
            place = store.artifact_location
            if urlsplit(place).scheme in ("", "file"):
                raise UserError(
                    f"{uri}: that server leaves files to its clients, in {place}, which other machines do not see.\n"
                    "Start it with: mlflow server --artifacts-destination FOLDER"
                )
            if study.crew.leads:
                self.parcels.run_id = open_study_run(store, record)
                study.set_run_id(self.parcels.run_id)
                self._publish_all()
            elif self.parcels.run_id is None or not store.has_run(self.parcels.run_id):
                raise UserError(f"{uri}: that server does not know study={record.study}, which others work on.")
        except FAILURES as error:
            raise UserError(f"{uri} cannot be used: {first_line(error)}") from None

    def publish(self, name: str) -> bool:
        """Hands over the folder of a trial that has ended; returns whether that is done. It may be done again."""
        return self._done(f"publish {name}", partial(self._publish, name))

    def publish_again(self, name: str) -> None:
        """Hands over what is left of a folder in place of what was handed over before, or is on its way."""

        def publish() -> None:
            with suppress(FileNotFoundError):  # the trial is another machine's by now
                self._publish(name)

        self.aside.add(partial(self.parcels.tried, publish))

    def release(self, name: str) -> None:
        """The study knows how the trial has ended: nobody goes on with it."""
        self.checkpoints.remove(name)

    def fetch(self, name: str) -> bool:
        """Whether the folder of a trial that has ended is here; it is brought here if need be."""
        return has_ended(self.folder / name) or self._done(f"fetch {name}", partial(self._fetch, name))

    def gather(self, names: list[str]) -> bool:
        """Whether these trials are here, and all else that has been handed over; it is brought here if need be."""
        gathered = self.aside.done("gather", partial(self.fetch_all, names), self.parcels.moment)
        return gathered and all(has_ended(self.folder / each) for each in names)  # it may have been asked for fewer

    def fetch_all(self, names: list[str]) -> bool:
        """Whether these trials are here, and all else that has been handed over: reference rows, repeats. Waits for
        them."""
        there = [*names]
        return self.parcels.tried(lambda: there.extend(self._published())) and all(
            has_ended(self.folder / each) or self.parcels.tried(partial(self._fetch, each)) for each in there
        )

    def carry(self, names: Iterable[str], still: Callable[[], bool]) -> None:
        """Hands over checkpoints of trials that run here, one at a time. `still`: whether none of them is another
        machine's by now."""
        self.checkpoints.carry(names, still)

    def bring(self, name: str) -> bool:
        """Whether a trial that another machine may have begun can go on here."""
        return self.checkpoints.bring(name)

    def discard(self, name: str) -> None:
        """What counts of a trial is what another machine, which has taken it over, makes of it; another worker of this
        one goes on with it in this very folder."""
        self.aside.drop(f"publish {name}")
        self.checkpoints.forget(name)
        if self.workers == 1:
            with disk.scratch(self.folder, ON_ITS_WAY) as place, suppress(FileNotFoundError):
                (self.folder / name).rename(Path(place) / name)  # at once: it may be on its way again

    def check(self) -> None:
        """Raises Trouble where waiting for the server has been in vain."""
        if self.problem is not None and time.monotonic() - self.parcels.failed_first > PATIENCE:
            raise Trouble(
                f"MLflow has not answered for {PATIENCE / 60:.0f} minutes ({self.problem}), and what other machines "
                "have trained, or lack of this one, cannot be carried."
            )

    def part(self, names: Iterable[str]) -> None:
        """Hands over the last checkpoints of trials that this machine leaves behind."""
        self.checkpoints.part(names)

    def finish(self) -> None:
        """The study is complete. One that has slept may have handed over a checkpoint of a trial that had ended."""
        self.checkpoints.remove()

    def close(self) -> None:
        """Leaves what is not done by now."""
        self.aside.close()
        self.checkpoints.close()

    def _done(self, what: str, act: Callable[[], None]) -> bool:
        return self.aside.done(what, partial(self.parcels.tried, act), self.parcels.moment)

    def _publish_all(self) -> None:
        """What has ended here but is not there, as with a study that was in one folder for all before."""
        there = self._published()
        for each in self.folder.glob("*/trial.json"):
            if each.parent.name not in there and has_ended(each.parent):
                self._publish(each.parent.name)

    def _publish(self, name: str) -> None:
        try:
            self.parcels.send(ENDED, name, _whole(self.folder / name))
        except FileNotFoundError:  # another worker of this machine has just dropped its adapter
            self.parcels.send(ENDED, name, _whole(self.folder / name))

    def _fetch(self, name: str) -> None:
        self.parcels.receive(f"{ENDED}/{name}.zip", name)

    def _published(self) -> list[str]:
        return [Path(file).stem for file in self.parcels.there(ENDED)]


def _whole(folder: Path) -> dict[str, Path | str]:
    """All that is in the folder of a trial. Raises FileNotFoundError if there is none."""
    (folder / "trial.json").stat()
    return {str(each.relative_to(folder)): each for each in sorted(folder.rglob("*"))}


def exchange_for(
    study: Study, config: SweepConfig, record: StudyRecord, folder: Path, say: Callable[[str], None]
) -> Exchange | SharedFolder:
    """With all that has ended in the folder of the machine that leads. Raises UserError if that cannot be had."""
    if shares_folder(record):
        return SharedFolder(folder)
    check_own_folder(study, record, folder)
    store = Store(config.tracking.uri, str(config.tracking.experiment))
    exchange = Exchange(Parcels(store, study.run_id, folder, say), config.cluster.workers)
    if study.crew.leads and not exchange.fetch_all([trial_name(trial.number) for trial in study.ended]):
        raise UserError(f"tracking.uri={public(store.uri)} lacks trials of the study: {exchange.problem}")
    return exchange
