"""What goes into a step: the batches of one batch size, and the rows that slots make of them."""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

import mlx.core as mx
import numpy as np

from lora_core import backend
from lora_core.batches import Batch, make_batches
from lora_core.data import Dataset, Row
from lora_core.prefix import PrefixCache, joined
from lora_core.step import Rows


class Feed:
    """The batches of one batch size, the same for every trial; `valid` are those of the first `eval_rows` rows,
    `test` of all rows there are. The base model's loss is kept beside them once it is known."""

    def __init__(self, data: Dataset, prefixes: PrefixCache, batch_size: int, eval_rows: int | None) -> None:
        multiple = backend.length_multiple()
        self.key = (batch_size, eval_rows)
        self.prefixes = prefixes
        self.train = make_batches(data.train, batch_size, multiple, shuffle_seed=0)
        self.valid = _to_evaluate(data.valid[:eval_rows], batch_size, multiple)
        self.test = _to_evaluate(data.test or [], batch_size, multiple)
        self.base_loss: float | None = None

    def rows(self, coming: Sequence[Sequence[Batch]], split: str, boundaries: Sequence[int]) -> Rows:
        """The rows of one batch a slot, all of one length, one slot after the other. `coming`: by slot, its batch and
        those that it takes next. `split` is train, valid or test; `boundaries`: by slot, ascending, the lowest block
        its rows are to run through."""
        batches = [first for first, *_ in coming]

        def stacked(name: str) -> mx.array:
            return mx.array(np.stack([getattr(batch, name) for batch in batches]))

        pairs = groupby(zip(boundaries, coming, strict=True), key=itemgetter(0))
        groups = [(boundary, [queue for _, queue in pair]) for boundary, pair in pairs]
        tokens = mx.array(np.concatenate([first.inputs for first, *_ in groups[0][1]]))
        hidden = [
            joined([self.prefixes.hidden(queue, (self.key, split), boundary) for queue in queues])
            for boundary, queues in groups
            if boundary > 0
        ]
        return Rows(tokens, hidden, stacked("positions"), stacked("targets"), stacked("weights"))


def _to_evaluate(rows: list[Row], batch_size: int, multiple: int) -> list[Batch]:
    """All rows in batches of that many, or of more where that is faster."""
    longest = max((len(row) for row in rows), default=1)
    return make_batches(rows, max(batch_size, min(len(rows), backend.evaluated_tokens() // longest)), multiple)
