"""Rows grouped into batches of fixed shapes, once for all trials, and the order in which trials take them.

Every row is in exactly one batch. Epochs permute the batches, never their content, so that what the frozen
blocks make of a batch can be kept from one epoch to the next, and all trials of a study see the same batches.
"""

from dataclasses import dataclass

import numpy as np

from lora_core.config import TrainerConfig
from lora_core.data import Row

MAX_LENGTHS = 3
# Another length is worth its trace once padding costs this many times the tokens of rows padded one by one.
PADDING_LIMIT = 1.3
POSITIONS_MULTIPLE = 8


@dataclass(frozen=True, eq=False)
class Batch:
    """b rows padded to T = `length` inputs each, and the P positions whose next token counts in the loss.

    `inputs`: int32 [b, T], padded with 0 on the right, where a causal model cannot see it. `positions`: int32
    [P], flat in b·T: the input at `positions[i]` predicts `targets[i]`, int32 [P]. `weights`: float32 [P], 1,
    or 0 for the padding that makes P the same for all batches of one length. `tokens`: how many weights are
    1. `rows`: the numbers of the rows within the split, at most b; the inputs of missing ones are all
    padding. `index`: the batch's own place in its list.
    """

    index: int
    length: int
    inputs: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    tokens: int
    rows: tuple[int, ...]


def make_batches(rows: list[Row], batch_size: int, multiple: int, shuffle_seed: int | None = None) -> list[Batch]:
    """All rows in batches of `batch_size`, of one to three lengths that are multiples of `multiple`.

    With a `shuffle_seed` (0 or more) the rows of a length are shuffled before they are grouped, since
    neighbours in a file are often alike; without, they keep their order. What a batch holds depends on
    nothing else.
    """
    if not rows:
        return []
    needed = np.array([_round_up(len(row) - 1, multiple) for row in rows])
    lengths = _choose_lengths(needed, batch_size)
    bucket_of = np.searchsorted(lengths, needed)
    ids = np.arange(len(rows))
    if shuffle_seed is not None:
        ids = np.random.default_rng(np.random.SeedSequence(shuffle_seed, spawn_key=(2,))).permutation(ids)
    batches: list[Batch] = []
    for bucket, length in enumerate(lengths):
        members = ids[bucket_of[ids] == bucket].tolist()
        groups = [tuple(members[i : i + batch_size]) for i in range(0, len(members), batch_size)]
        batches += _batches_of(rows, groups, batch_size, length, len(batches))
    return batches


def order(batches: int, steps: int, seed: int, repeat: int) -> np.ndarray:
    """Which batch each step takes, int64 [steps], 1 or more: one permutation of all batches per epoch. It
    depends on `seed` and `repeat` (0 or more) alone, and a shorter order is the beginning of a longer one."""
    epochs = -(-steps // batches)
    seeds = [np.random.SeedSequence([seed, repeat, epoch]) for epoch in range(epochs)]
    return np.concatenate([np.random.default_rng(s).permutation(batches) for s in seeds])[:steps]


def steps_for(trainer: TrainerConfig, batches: int) -> int:
    """The optimizer steps of a trial: `iters`, or those in `epochs` times `batches`, rounded, at least 1."""
    if trainer.iters is not None:
        return trainer.iters
    assert trainer.epochs is not None  # config.check wants one of the two
    return max(1, round(trainer.epochs * batches / trainer.grad_accumulation))


def _round_up(number: int, multiple: int) -> int:
    return max(1, -(-number // multiple)) * multiple


def _choose_lengths(needed: np.ndarray, batch_size: int) -> list[int]:
    """The padded lengths, ascending: as few as keep within the padding limit, else those that pad least."""
    plans = _plans(needed, batch_size)
    for tokens, lengths in plans:
        if tokens <= PADDING_LIMIT * needed.sum():
            return lengths
    return min(plans, key=lambda plan: plan[0])[1]


def _plans(needed: np.ndarray, batch_size: int) -> list[tuple[int, list[int]]]:
    """The best one, two and three lengths, each with the tokens it runs, empty rows of last batches included.

    Dynamic programme over the distinct lengths: the best way to cover the j shortest with k lengths is the
    best way to cover some i < j of them with k-1, and the rest padded to the j-th.
    """
    distinct, counts = np.unique(needed, return_counts=True)
    rows_below = np.concatenate([[0], np.cumsum(counts)])
    tokens: list[float] = [0.0] + [np.inf] * len(distinct)
    chosen: list[list[int]] = [[] for _ in tokens]
    plans = []
    for _ in range(min(MAX_LENGTHS, len(distinct))):
        next_tokens: list[float] = [np.inf]
        next_chosen: list[list[int]] = [[]]
        for j, length in enumerate(distinct.tolist(), 1):
            batches = -(-(rows_below[j] - rows_below[:j]) // batch_size)
            costs = np.array(tokens[:j]) + batches * batch_size * length
            i = int(costs.argmin())
            next_tokens.append(float(costs[i]))
            next_chosen.append([*chosen[i], length])
        tokens, chosen = next_tokens, next_chosen
        plans.append((int(tokens[-1]), chosen[-1]))
    return plans


def _batches_of(
    rows: list[Row], groups: list[tuple[int, ...]], batch_size: int, length: int, first_index: int
) -> list[Batch]:
    """One batch per group of row numbers; P is what the fullest of them needs."""
    counted = [sum(int(rows[i].counts[1:].sum()) for i in group) for group in groups]
    places = _round_up(max(counted), POSITIONS_MULTIPLE)
    return [_batch(rows, group, (batch_size, length), places, first_index + n) for n, group in enumerate(groups)]


def _batch(rows: list[Row], group: tuple[int, ...], shape: tuple[int, int], places: int, index: int) -> Batch:
    inputs = np.zeros(shape, dtype=np.int32)
    following = np.zeros(shape, dtype=np.int32)
    counts = np.zeros(shape, dtype=np.bool_)
    for line, i in enumerate(group):
        used = len(rows[i]) - 1
        inputs[line, :used] = rows[i].tokens[:-1]
        following[line, :used] = rows[i].tokens[1:]
        counts[line, :used] = rows[i].counts[1:]
    where = np.flatnonzero(counts)
    positions, targets = np.zeros((2, places), dtype=np.int32)
    positions[: len(where)] = where
    targets[: len(where)] = following.ravel()[where]
    weights = (np.arange(places) < len(where)).astype(np.float32)
    return Batch(index, shape[1], inputs, positions, targets, weights, len(where), group)
