"""The latest checkpoints of running trials, on their way to machines that may have to go on with them.

One is checkpoints/trial-0007/120.zip among the files of the study's run, by its step: a machine may die while it sends
the next. They go when the trial ends.
"""

import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

from lora_core.records import CHECKPOINT, saved_step
from sweeps.aside import Aside
from sweeps.parcels import Parcels
from sweeps.standing import has_ended


class Checkpoints:
    """Hands over those of this machine, and brings those of others, beside the training."""

    def __init__(self, parcels: Parcels) -> None:
        self.parcels = parcels
        self._sending, self._fetching = Aside(), Aside()
        self._sent: dict[str, tuple[float, int]] = {}  # by trial: when one was, and its step
        self._latest: Future[bool] | None = None

    @property
    def are_idle(self) -> bool:
        return self._sending.is_idle and self._fetching.is_idle

    def carry(self, names: Iterable[str], still: Callable[[], bool]) -> None:
        """Hands over that of which there was none for longest, of trials that run here, unless another is on its way.
        `still`: whether none of them is another machine's by now."""
        if self._sending.is_idle and (newer := self._newer(names)) and still():
            if self._latest is not None:
                self._latest.result()  # a full disk is everybody's
            name = min(newer, key=lambda name: self._sent.get(name, (0.0, 0)))
            self._latest = self._sending.add(partial(self.parcels.tried, partial(self._send, name)))

    def part(self, names: Iterable[str]) -> None:
        """Hands over the last ones of trials that this machine leaves behind."""
        for name in self._newer(names):
            self._sending.add(partial(self.parcels.tried, partial(self._send, name)))

    def bring(self, name: str) -> bool:
        """Whether a trial that may have been begun elsewhere can run here: its latest checkpoint is here, if there is
        one, and if the server answers."""
        fetch = partial(self.parcels.tried, partial(self._fetch, name))
        done = partial(self._fetching.done, f"bring {name}", lambda: fetch() or True, self.parcels.moment)
        return has_ended(self.parcels.folder / name) or done()

    def remove(self, name: str = "") -> None:
        """The trial, or the study, has ended."""
        self._sending.add(partial(self.parcels.remove, _place(name)))  # after any that is on its way

    def forget(self, name: str) -> None:
        """Another machine goes on with the trial."""
        self._sent.pop(name, None)
        self._fetching.drop(f"bring {name}")

    def close(self) -> None:
        self._sending.close()
        self._fetching.close()

    def _newer(self, names: Iterable[str]) -> list[str]:
        """Those with another one than was handed over last."""
        return [name for name in names if self._step_here(name) > self._sent.get(name, (0.0, 0))[1]]

    def _step_here(self, name: str) -> int:
        return saved_step(self.parcels.folder / name)

    def _there(self, name: str) -> dict[int, str]:
        """The paths of those that machines have handed over, by their steps."""
        return {int(Path(file).stem): file for file in self.parcels.there(_place(name))}

    def _send(self, name: str) -> None:
        """In place of earlier ones."""
        there = self._there(name)
        with suppress(FileNotFoundError):  # the trial has ended, or has another one, meanwhile
            step, contents = _packed(self.parcels.folder / name)
            if step > max(there, default=0):
                self.parcels.send(_place(name), str(step), contents)
            self._sent[name] = time.monotonic(), step
            for before in there:
                if before < step:
                    self.parcels.remove(there[before])

    def _fetch(self, name: str) -> None:
        """The latest that is whole, unless there is one as late here."""
        there, here = self._there(name), self._step_here(name)
        for step in sorted((step for step in there if step > here), reverse=True):
            with suppress(BadZipFile):
                return self.parcels.receive(there[step], name)


def _place(name: str) -> str:
    return f"checkpoints/{name}".rstrip("/")


def _packed(folder: Path) -> tuple[int, dict[str, Path | str]]:
    """The step of the checkpoint in a trial's folder, and what goes with it. Raises FileNotFoundError if it runs no
    more: what is written at its end would make others take it for a trial that has ended."""
    index, record = (folder / CHECKPOINT).read_text(), (folder / "trial.json").read_text()
    if json.loads(record)["state"] != "running":
        raise FileNotFoundError
    known = json.loads(index)
    arrays, metrics = known["file"], "metrics.jsonl"
    contents = {arrays: folder / arrays, metrics: folder / metrics, CHECKPOINT: index, "trial.json": record}
    return known["host"]["step"], contents
