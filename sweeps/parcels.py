"""Folders of trials on their way from one machine to another, as files of the study's run in MLflow."""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from lora_core import disk
from lora_core.errors import UserError
from lora_core.records import load_trial, save_trial
from sweeps.connect import FAILURES, check_server, first_line
from sweeps.store import Store

ON_ITS_WAY = ".on-its-way-"  # an adapter may be too large for /tmp
MOMENT = 1.0  # seconds that who asks first waits, for most is done by then
PAUSE = 15.0  # seconds before a server that failed is tried again


class Parcels:
    """Between `folder`, which is this machine's alone, and the run `run_id` of `store`; None: there is no run yet.
    `say` takes lines for the user. A server that fails is left alone for a while; `problem` says why. All of it may be
    asked for from any thread."""

    def __init__(self, store: Store, run_id: str | None, folder: Path, say: Callable[[str], None]) -> None:
        self.store = store
        self.run_id = run_id
        self.folder = folder
        self.say = say
        self.problem: str | None = None
        self.failed_first = self._failed_last = 0.0
        self._noting = threading.Lock()

    def tried(self, act: Callable[[], None]) -> bool:
        """Whether the server answers, and `act` is done. Raises OSError where the disk is full."""
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
        with self._noting:
            before, self.problem = self.problem, problem
            if problem is not None:
                self._failed_last = time.monotonic()
                if before is None:
                    self.failed_first = self._failed_last
                    self.say(f"MLflow does not answer ({problem}). What has ended waits on this disk.")
            elif before is not None:
                self.say("MLflow answers again, and carries what has ended.")

    @property
    def moment(self) -> float:
        """Seconds to wait for what is asked for first."""
        return MOMENT if self.problem is None else 0.0

    def there(self, place: str) -> list[str]:
        """The paths of what is in a folder of the run."""
        return [] if self.run_id is None else self.store.files(self.run_id, place)

    def send(self, place: str, name: str, contents: Mapping[str, Path | str]) -> None:
        """Puts NAME.zip in a folder of the run: files, or texts, by their paths in it. Raises FileNotFoundError."""
        assert self.run_id is not None
        with disk.scratch(self.folder, ON_ITS_WAY) as scratch:
            parcel = Path(scratch) / f"{name}.zip"
            with ZipFile(parcel, "w") as packed:
                for path, each in contents.items():
                    if isinstance(each, Path):
                        packed.write(each, path)
                    else:
                        packed.writestr(path, each)
            self.store.add_file(self.run_id, parcel, place)

    def receive(self, path: str, name: str) -> None:
        """Puts what is in that file of the run in place of the trial's folder, complete or not at all. Raises
        BadZipFile if the file is not whole."""
        assert self.run_id is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        with disk.scratch(self.folder, ON_ITS_WAY) as scratch:
            file = self.store.fetch_file(self.run_id, path, Path(scratch))
            brought = Path(scratch) / name
            with ZipFile(file) as packed:
                packed.extractall(brought)
            record = load_trial(brought)
            if not (brought / "adapters").is_dir():
                record.adapter = None
                save_trial(brought, record)
            with suppress(FileNotFoundError):
                (self.folder / name).rename(Path(scratch) / "before")  # at once: somebody may be reading all folders
            brought.rename(self.folder / name)

    def remove(self, path: str) -> bool:
        """Removes a file of the run, or a folder. Where that cannot be done, it stays, and does no harm."""
        assert self.run_id is not None
        with suppress(*FAILURES, UserError, NotImplementedError):
            check_server(self.store.uri)
            self.store.remove_files(self.run_id, path)
        return True
