"""Hidden states after the frozen blocks, computed once per batch for all slots and epochs."""

from collections.abc import Hashable

import mlx.core as mx

from lora_core.batches import Batch
from lora_core.split import Split

BUDGET = 4 << 30  # bytes


class PrefixCache:
    """Keeps prefixes up to `budget` bytes; past that they are computed each time, which changes speed only."""

    def __init__(self, split: Split, budget: int = BUDGET) -> None:
        self.split = split
        self.budget = budget
        self.used = 0
        self._kept: dict[Hashable, mx.array] = {}

    def hidden(self, batch: Batch, key: Hashable, boundary: int) -> mx.array:
        """Hidden states [b, T, D] of the batch after block `boundary`-1; `key` names the batch."""
        found = self._kept.get((key, boundary))
        if found is not None:
            return found
        hidden = self.split.prefix(mx.array(batch.inputs), boundary)
        mx.eval(hidden)
        if self.used + hidden.nbytes <= self.budget:
            self._kept[key, boundary] = hidden
            self.used += hidden.nbytes
        return hidden
