"""How one machine gets at what another has trained: in a folder that all of them see, or through MLflow, where each
writes to a folder of its own (`cluster.shared_folder=false`).

A trial that has ended becomes a file of the study's run, trials/trial-0007.zip, before the study is told of it. So
whatever has ended according to the study can be had. Of what is running, the latest checkpoint is there,
checkpoints/trial-0007/120.zip, until the trial ends; a file by its step, as one that is half there is worth nothing.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from zipfile import BadZipFile, ZipFile

from lora_core import disk
from lora_core.errors import UserError
from lora_core.records import CHECKPOINT, StudyRecord, load_trial, save_trial, saved_step
from sweeps.aside import Aside
from sweeps.config import SweepConfig
from sweeps.connect import FAILURES, check_server, first_line
from sweeps.public import public
from sweeps.standing import has_ended, shares_folder
from sweeps.store import Store
from sweeps.study import Study, trial_name
from sweeps.study_folder import check_own_folder
from sweeps.study_run import open_study_run
from sweeps.trouble import Trouble

ENDED, CHECKPOINTS = "trials", "checkpoints"  # folders among the files of the run
PARTING = 10.0  # seconds that a machine which leaves takes to hand over its last checkpoints
ON_ITS_WAY = ".on-its-way-"  # an adapter may be too large for /tmp
PAUSE = 15.0  # seconds before a server that failed is tried again
PATIENCE = 600.0  # seconds that a machine with nothing else left to do waits for it, or for a drive


class SharedFolder:
    """Nothing has to be handed over: what one machine writes to `folder`, all of them see."""

    problem: str | None = None

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

    def gather(self, names: list[str]) -> bool:
        return True

    def carry(self, names: Iterable[str]) -> None:
        """Their checkpoints are where all see them."""

    def bring(self, name: str) -> bool:
        return True

    def discard(self, name: str) -> None:
        """Others go on with it in this very folder."""

    def check(self) -> None:
        """Raises Trouble where waiting for the drive has been in vain."""
        for name, since in self._missed.items():
            if time.monotonic() - since > PATIENCE:
                raise Trouble(f"{self.folder / name} cannot be seen, though another machine has ended that trial.")

    def settle(self) -> None:
        """Nothing is under way."""

    def leave(self, names: Iterable[str]) -> None:
        """Nothing is open."""


class Exchange:
    """Carries trials between `folder`, which is this machine's alone, and the run `run_id` of the study; None: there is
    no run yet. `workers`: how many processes of this machine write to that folder. `say` takes lines for the user, from
    any thread. A server that fails is left alone for a while; `problem` says why.

    What is published or fetched goes its way beside the training, so that it may be done only when asked for again."""

    def __init__(
        self, store: Store, run_id: str | None, folder: Path, say: Callable[[str], None], workers: int = 1
    ) -> None:
        self.store = store
        self.run_id = run_id
        self.folder = folder
        self.say = say
        self.workers = workers
        self.problem: str | None = None
        self._failed_first = self._failed_last = 0.0
        self._carried: dict[str, tuple[float, int]] = {}  # of running trials: when a checkpoint was, and its step
        self._noting = threading.Lock()
        self._ended, self._running = Aside(), Aside()  # what is to be done for those; neither waits for the other

    def open(self, study: Study, record: StudyRecord) -> None:
        """The machine that leads makes the run, and hands over what it has already; those that join look for the run.
        Raises UserError where the server does not have it, or would not carry its files."""
        uri = f"tracking.uri={public(self.store.uri)}"
        record.tracking = record.tracking | ({"run_id": self.run_id} if self.run_id else {})
        disk.remove_orphans(self.folder, ON_ITS_WAY)
        try:
            place = self.store.artifact_location
            if urlsplit(place).scheme in ("", "file"):
                raise UserError(
                    f"{uri}: that server leaves files to its clients, in {place}, which other machines do not see.\n"
                    "Start it with: mlflow server --artifacts-destination FOLDER"
                )
            if study.crew.leads:
                self.run_id = open_study_run(self.store, record)
                study.set_run_id(self.run_id)
                self._publish_all()
            elif self.run_id is None or not self.store.has_run(self.run_id):
                raise UserError(f"{uri}: that server does not know study={record.study}, which others work on.")
        except FAILURES as error:
            raise UserError(f"{uri} cannot be used: {first_line(error)}") from None

    def publish(self, name: str) -> bool:
        """Hands over the folder of a trial that has ended; returns whether that is done. It may be done again."""
        return self._ended.done(f"publish {name}", partial(self._tried, partial(self._publish, name)))

    def publish_again(self, name: str) -> None:
        """Hands over what is left of a folder in place of what was handed over before, or is on its way."""
        self._ended.add(partial(self._tried, partial(self._publish, name)))

    def fetch(self, name: str) -> bool:
        """Whether the folder of a trial that has ended is here; it is brought here if need be."""
        fetch = partial(self._tried, partial(self._fetch, name))
        return has_ended(self.folder / name) or self._ended.done(f"fetch {name}", fetch)

    def gather(self, names: list[str]) -> bool:
        """Whether these trials are here, and all else that has been handed over; it is brought here if need be."""
        gathered = self._ended.done("gather", partial(self.fetch_all, names))
        return gathered and all(has_ended(self.folder / each) for each in names)  # it may have been asked for fewer

    def fetch_all(self, names: list[str]) -> bool:
        """Whether these trials are here, and all else that has been handed over: reference rows, repeats. Waits for
        them."""
        there = [*names]
        return self._tried(lambda: there.extend(self._published())) and all(
            has_ended(self.folder / each) or self._tried(partial(self._fetch, each)) for each in there
        )

    def carry(self, names: Iterable[str]) -> None:
        """Hands over the checkpoint of a running trial, that of which there was none for longest, while there is
        nothing else to carry."""
        if self._running.is_idle and (newer := self._newer(names)):
            self._carry(min(newer, key=lambda name: self._carried.get(name, (0.0, 0))))

    def bring(self, name: str) -> bool:
        """Whether a trial that may have been begun elsewhere can run here: its latest checkpoint is here, if there is
        one, and if the server answers."""
        known = name in self._carried or has_ended(self.folder / name)
        return known or self._running.done(f"bring {name}", lambda: self._tried(partial(self._bring, name)) or True)

    def discard(self, name: str) -> None:
        """What counts of a trial is what another machine, which has taken it over, makes of it; another worker of this
        one goes on with it in this very folder."""
        self._ended.drop(f"publish {name}")
        self._carried.pop(name, None)
        if self.workers == 1:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def check(self) -> None:
        """Raises Trouble where waiting for the server has been in vain."""
        if self.problem is not None and time.monotonic() - self._failed_first > PATIENCE:
            raise Trouble(
                f"MLflow has not answered for {PATIENCE / 60:.0f} minutes ({self.problem}), and what other machines "
                "have trained, or lack of this one, cannot be carried."
            )

    def settle(self) -> None:
        """Waits until all that was asked for is done, or cannot be done now."""
        for each in (self._ended, self._running):
            each.settle()

    def leave(self, names: Iterable[str]) -> None:
        """Hands over the checkpoints of trials that this machine leaves behind, within reason. Ends once nothing is
        half done."""
        for name in self._newer(names):
            self._carry(name)
        self._ended.close()
        self._running.settle(PARTING)
        self._running.close()

    def _tried(self, act: Callable[[], None]) -> bool:
        if self.problem is not None and time.monotonic() - self._failed_last < PAUSE:
            return False
        try:
            check_server(self.store.uri)  # MLflow itself would try for longer
            act()
        except (*FAILURES, UserError, BadZipFile) as error:
            if disk.is_full(error):
                raise
            self._note(first_line(error))
            return False
        self._note(None)
        return True

    def _note(self, problem: str | None) -> None:
        """Whether the server has answered, from any thread."""
        with self._noting:
            before, self.problem = self.problem, problem
            if problem is not None:
                self._failed_last = time.monotonic()
                if before is None:
                    self._failed_first = self._failed_last
                    self.say(f"MLflow does not answer ({problem}). What has ended waits on this disk.")
            elif before is not None:
                self.say("MLflow answers again, and carries what has ended.")

    def _publish_all(self) -> None:
        """What has ended here but is not there, as with a study that was in one folder for all before."""
        there = self._published()
        for each in self.folder.glob("*/trial.json"):
            if each.parent.name not in there and has_ended(each.parent):
                self._publish(each.parent.name)

    def _publish(self, name: str) -> None:
        with disk.scratch(self.folder, ON_ITS_WAY) as place:
            file = Path(place) / f"{name}.zip"
            try:
                _pack(self.folder / name, file)
            except FileNotFoundError:  # another worker of this machine has just dropped its adapter
                _pack(self.folder / name, file)
            self.store.add_file(self._run(), file, ENDED)
        self._running.add(partial(self._remove, _checkpoints(name)))  # after any that is on its way

    def _newer(self, names: Iterable[str]) -> list[str]:
        """Those with another checkpoint than was handed over last."""
        return [name for name in names if saved_step(self.folder / name) > self._carried.get(name, (0.0, 0))[1]]

    def _carry(self, name: str) -> None:
        self._carried[name] = time.monotonic(), saved_step(self.folder / name)
        self._running.add(partial(self._tried, partial(self._add_checkpoint, name)))

    def _add_checkpoint(self, name: str) -> None:
        before = self.store.files(self._run(), _checkpoints(name))
        with disk.scratch(self.folder, ON_ITS_WAY) as place:
            if file := _pack_checkpoint(self.folder / name, Path(place)):
                self.store.add_file(self._run(), file, _checkpoints(name))
                for each in before:
                    self._remove(each)

    def _bring(self, name: str) -> None:
        """The latest checkpoint of a trial that is whole, unless there is one as late here."""
        there = {int(Path(file).stem): file for file in self.store.files(self._run(), _checkpoints(name))}
        here = saved_step(self.folder / name)
        for step in sorted((step for step in there if step > here), reverse=True):
            with suppress(BadZipFile):
                return self._fetch(name, there[step])

    def _remove(self, path: str) -> bool:
        """What stays does no harm."""
        with suppress(*FAILURES, NotImplementedError):
            check_server(self.store.uri)
            self.store.remove_files(self._run(), path)
        return True

    def _fetch(self, name: str, path: str | None = None) -> None:
        """The folder of a trial that has ended, or what is at `path`, complete or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with disk.scratch(self.folder, ON_ITS_WAY) as place:
            file = self.store.fetch_file(self._run(), path or f"{ENDED}/{name}.zip", Path(place))
            brought = Path(place) / name
            with ZipFile(file) as packed:
                packed.extractall(brought)
            record = load_trial(brought)
            if not (brought / "adapters").is_dir():
                record.adapter = None
                save_trial(brought, record)
            with suppress(FileNotFoundError):
                (self.folder / name).rename(Path(place) / "before")  # at once: somebody may be reading all folders
            brought.rename(self.folder / name)

    def _published(self) -> list[str]:
        return [Path(file).stem for file in self.store.files(self._run(), ENDED)] if self.run_id else []

    def _run(self) -> str:
        assert self.run_id is not None
        return self.run_id


def _pack(folder: Path, file: Path) -> None:
    with ZipFile(file, "w") as packed:
        for each in sorted(folder.rglob("*")):
            packed.write(each, each.relative_to(folder))


def _checkpoints(name: str) -> str:
    """Where those of a trial are among the files of the run."""
    return f"{CHECKPOINTS}/{name}"


def _pack_checkpoint(folder: Path, place: Path) -> Path | None:
    """A file in `place` of the checkpoint in `folder`; None where the trial ends, or writes another one, meanwhile."""
    try:
        index, record = (folder / CHECKPOINT).read_text(), (folder / "trial.json").read_text()
        known = json.loads(index)
        file = place / f"{known['host']['step']}.zip"
        with ZipFile(file, "w") as packed:
            packed.write(folder / known["file"], known["file"])
            packed.write(folder / "metrics.jsonl", "metrics.jsonl")
            packed.writestr(CHECKPOINT, index)
            packed.writestr("trial.json", record)
    except FileNotFoundError:
        return None
    return file if json.loads(record)["state"] == "running" else None


def exchange_for(
    study: Study, config: SweepConfig, record: StudyRecord, folder: Path, say: Callable[[str], None]
) -> Exchange | SharedFolder:
    """With all that has ended in the folder of the machine that leads. Raises UserError if that cannot be had."""
    if shares_folder(record):
        return SharedFolder(folder)
    check_own_folder(study, record, folder)
    store = Store(config.tracking.uri, str(config.tracking.experiment))
    exchange = Exchange(store, study.run_id, folder, say, config.cluster.workers)
    if study.crew.leads and not exchange.fetch_all([trial_name(trial.number) for trial in study.ended]):
        raise UserError(f"tracking.uri={public(store.uri)} lacks trials of the study: {exchange.problem}")
    return exchange
