"""Hidden states after the frozen blocks, computed once per batch for all slots and epochs."""

import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Hashable
from pathlib import Path

import mlx.core as mx

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
        self.used = self.disk_used = 0
        self.per_token = 0  # bytes, known once there is a first prefix
        self._kept: dict[Hashable, mx.array] = {}
        self._files: dict[Hashable, Path] = {}
        self._numbers = itertools.count()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def hidden(self, batch: Batch, key: Hashable, boundary: int) -> mx.array:
        """Hidden states [b, T, D] of the batch after block `boundary`-1; `key` names the batch."""
        found = self._found(key, boundary)
        if found is not None:
            return found
        start = max((b for b in range(1, boundary) if (key, b) in self._kept), default=0)
        below = self._kept.get((key, start))
        hidden = self.split.prefix(mx.array(batch.inputs), boundary, start, below)
        mx.eval(hidden)
        self.per_token = hidden.nbytes // batch.inputs.size
        self._keep((key, boundary), hidden)
        return hidden

    def _found(self, key: Hashable, boundary: int) -> mx.array | None:
        file = self._files.get((key, boundary))
        if file is None:
            return self._kept.get((key, boundary))
        return mx.load(str(file))["hidden"]

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
            remove_orphans(Path(tempfile.gettempdir()))
            self._folder = tempfile.TemporaryDirectory(prefix=f"{NAME}{os.getpid()}-", ignore_cleanup_errors=True)
            free = shutil.disk_usage(self._folder.name).free
            self.disk_budget = min(self.disk_budget, int(DISK_SHARE * free))
        return Path(self._folder.name)


def remove_orphans(parent: Path) -> None:
    """Removes the folders in `parent` whose process is gone."""
    for folder in parent.glob(f"{NAME}*"):
        match = re.match(rf"{NAME}(\d+)-", folder.name)
        if match and not _runs(int(match[1])):
            shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True
