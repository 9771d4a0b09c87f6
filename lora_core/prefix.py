"""Hidden states after the frozen blocks, computed once per batch for all slots and epochs."""

import itertools
import shutil
import tempfile
from collections.abc import Hashable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from lora_core import backend, disk
from lora_core.batches import Batch
from lora_core.split import Split

DISK_BUDGET = 16 << 30  # bytes
DISK_SHARE = 0.5  # of what is free on the disk
NAME = "lora-sweep-prefixes-"


class PrefixCache:
    """Keeps prefixes in memory up to `budget` bytes, then on disk up to `disk_budget`; past that they are computed
    each time. Where they lie changes speed only. The files go with the cache, and those of a process that was
    killed when the next one comes."""

    def __init__(self, split: Split, budget: int, disk_budget: int = DISK_BUDGET) -> None:
        self.split = split
        self.budget = budget
        self.disk_budget = disk_budget
        self.tokens_at_once = backend.prefix_tokens()
        self.used = self.disk_used = 0
        self.per_token = 0  # bytes, known once there is a first prefix
        self._kept: dict[Hashable, mx.array] = {}
        self._files: dict[Hashable, Path] = {}
        self._numbers = itertools.count()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        disk.remove_orphans(Path(tempfile.gettempdir()), NAME)

    def hidden(self, coming: Sequence[Batch], source: Hashable, boundary: int) -> mx.array:
        """Hidden states [b, T, D] of the first of the batches after block `boundary`-1. `source` names the list that
        the batches, known there by their index, come from. Those `coming` after the first may be made with it."""
        found = self._found((source, coming[0].index), boundary)
        if found is not None:
            return found
        company = self._company(coming, source, boundary)
        start = self._start(source, company[0], boundary)
        below = [self._kept[(source, batch.index), start] for batch in company] if start else None
        tokens = mx.array(np.concatenate([batch.inputs for batch in company]))
        made = mx.split(self.split.prefix(tokens, boundary, start, joined(below) if below else None), len(company))
        mx.eval(made)
        self.per_token = made[0].nbytes // company[0].inputs.size
        for batch, hidden in zip(company, made, strict=True):
            self._keep(((source, batch.index), boundary), hidden)
        return made[0]

    def _company(self, coming: Sequence[Batch], source: Hashable, boundary: int) -> list[Batch]:
        """The first batch, and of the others those like it that are not there yet, as many as memory has room for:
        on a device that one batch leaves idle, they cost little more than it does."""
        first = coming[0]
        room = (self.budget - self.used) // (first.inputs.size * self.per_token) if self.per_token else 0
        start = self._start(source, first, boundary)
        alike = [
            batch for batch in coming[1:]
            if batch.length == first.length and not self._has((source, batch.index), boundary)
            and self._start(source, batch, boundary) == start
        ]  # fmt: skip
        return [first, *alike][: max(1, min(room, self.at_once(first)))]

    def at_once(self, batch: Batch) -> int:
        """How many batches of this size go through the frozen blocks together."""
        return max(1, self.tokens_at_once // batch.inputs.size)

    def _start(self, source: Hashable, batch: Batch, boundary: int) -> int:
        """The highest boundary below, from which a prefix can go on; 0: there is none."""
        return max((b for b in range(1, boundary) if ((source, batch.index), b) in self._kept), default=0)

    def _has(self, key: Hashable, boundary: int) -> bool:
        return (key, boundary) in self._kept or (key, boundary) in self._files

    def _found(self, key: Hashable, boundary: int) -> mx.array | None:
        file = self._files.get((key, boundary))
        if file is None:
            return self._kept.get((key, boundary))
        try:
            return mx.load(str(file))["hidden"]
        except RuntimeError:  # a cleaner of temporary files has been here
            del self._files[key, boundary]
            return None

    def _keep(self, name: Hashable, hidden: mx.array) -> None:
        if self.used + hidden.nbytes <= self.budget:
            self._kept[name] = hidden
            self.used += hidden.nbytes
        elif self._fits_on_disk(hidden.nbytes):
            file = self._place() / f"{next(self._numbers)}.safetensors"
            try:
                mx.save_safetensors(str(file), {"hidden": hidden})
            except RuntimeError:  # the disk is full: what is there stays, nothing more comes
                file.unlink(missing_ok=True)
                self.disk_budget = 0
                return
            self._files[name] = file
            self.disk_used += hidden.nbytes

    def _fits_on_disk(self, size: int) -> bool:
        # The folder first: how much room it has is part of the budget.
        return self.disk_budget > 0 and self._place().exists() and self.disk_used + size <= self.disk_budget

    def _place(self) -> Path:
        """The folder, made when it is first needed; its disk bounds the budget."""
        if self._folder is None:
            self._folder = disk.scratch(Path(tempfile.gettempdir()), NAME)
            free = shutil.disk_usage(self._folder.name).free
            self.disk_budget = min(self.disk_budget, int(DISK_SHARE * free))
        return Path(self._folder.name)


def joined(parts: Sequence[mx.array]) -> mx.array:
    """The parts' rows one after the other; the same part many times is copied in one go."""
    if any(part is not parts[0] for part in parts):
        return mx.concatenate(parts)
    shape = parts[0].shape
    return parts[0] if len(parts) == 1 else mx.broadcast_to(parts[0], (len(parts), *shape)).reshape(-1, *shape[1:])
