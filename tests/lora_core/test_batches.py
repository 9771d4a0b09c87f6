"""Properties of batches and of their order, on rows of any lengths."""

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_core.batches import PADDING_LIMIT, Batch, make_batches, order, steps_for
from lora_core.config import TrainerConfig
from lora_core.data import Row

MULTIPLES = st.sampled_from([1, 8, 128])
SIZES = st.integers(1, 6)


@st.composite
def row_lists(draw: st.DrawFn) -> list[Row]:
    """Rows whose tokens are all different, so that a token says where it comes from."""
    lengths = draw(st.lists(st.integers(2, 300), min_size=1, max_size=40))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    starts = np.cumsum([1, *lengths])
    rows = []
    for start, length in zip(starts, lengths, strict=False):
        counts = rng.random(length) < 0.4
        counts[0], counts[-1] = False, True
        rows.append(Row(np.arange(start, start + length, dtype=np.int32), counts))
    return rows


def plain_rows(*lengths: int) -> list[Row]:
    return [Row(np.arange(1, n + 1, dtype=np.int32), np.arange(n) > 0) for n in lengths]


def run_tokens(batches: list[Batch]) -> int:
    return sum(batch.inputs.size for batch in batches)


@given(row_lists(), SIZES, MULTIPLES, st.none() | st.integers(0, 9))
@settings(deadline=None)
def test_every_counted_token_once_behind_its_own_row(
    rows: list[Row], size: int, multiple: int, seed: int | None
) -> None:
    targets: list[int] = []
    for batch in make_batches(rows, size, multiple, seed):
        real = batch.weights == 1
        seen = batch.inputs.ravel()[batch.positions[real]]
        assert np.array_equal(seen + 1, batch.targets[real])  # tokens of a row ascend by one
        assert batch.tokens == real.sum()
        targets += batch.targets[real].tolist()
    expected = np.concatenate([row.tokens[row.counts] for row in rows])
    assert Counter(targets) == Counter(expected.tolist())


@given(row_lists(), SIZES, MULTIPLES, st.none() | st.integers(0, 9))
@settings(deadline=None)
def test_shapes_and_padding(rows: list[Row], size: int, multiple: int, seed: int | None) -> None:
    batches = make_batches(rows, size, multiple, seed)
    places: dict[int, int] = {}
    for index, batch in enumerate(batches):
        assert batch.index == index
        assert batch.inputs.shape == (size, batch.length) and batch.inputs.dtype == np.int32
        assert batch.length % multiple == 0
        assert set(np.unique(batch.weights)) <= {0.0, 1.0} and batch.weights.dtype == np.float32
        assert len(batch.positions) == len(batch.targets) == len(batch.weights)
        assert places.setdefault(batch.length, len(batch.weights)) % 8 == 0
        assert len(batch.weights) == places[batch.length]
        padding = batch.weights == 0
        assert not batch.targets[padding].any() and not batch.positions[padding].any()
        assert np.count_nonzero(batch.inputs) == sum(len(rows[i]) - 1 for i in batch.rows)
    assert len(places) <= 3
    assert max(places) == max(-(-(len(row) - 1) // multiple) * multiple for row in rows)


@given(row_lists(), SIZES, MULTIPLES, st.none() | st.integers(0, 9))
@settings(deadline=None)
def test_every_row_in_exactly_one_batch(rows: list[Row], size: int, multiple: int, seed: int | None) -> None:
    batches = make_batches(rows, size, multiple, seed)
    assert sorted(i for batch in batches for i in batch.rows) == list(range(len(rows)))
    short = [batch.length for batch in batches if len(batch.rows) < size]
    assert len(short) == len(set(short))  # at most the last batch of a length has rows to spare
    for line, i in ((line, i) for batch in batches[:1] for line, i in enumerate(batch.rows)):
        assert np.array_equal(batches[0].inputs[line, : len(rows[i]) - 1], rows[i].tokens[:-1])


@given(row_lists(), SIZES)
@settings(deadline=None, max_examples=40)
def test_lengths_are_the_cheapest_there_are(rows: list[Row], size: int) -> None:
    """Against all choices of lengths, tried one by one."""
    needed = [-(-(len(row) - 1) // 32) * 32 for row in rows]
    distinct = sorted(set(needed))

    def cheapest(count: int) -> int:
        costs = []
        for lower in combinations(distinct[:-1], count - 1):
            tops = [0, *lower, distinct[-1]]
            groups = [sum(a < n <= b for n in needed) for a, b in pairwise(tops)]
            costs.append(sum(-(-n // size) * size * top for n, top in zip(groups, tops[1:], strict=True)))
        return min(costs)

    costs = [cheapest(count) for count in range(1, min(3, len(distinct)) + 1)]
    enough = [cost for cost in costs if cost <= PADDING_LIMIT * sum(needed)]
    assert run_tokens(make_batches(rows, size, 32)) == (enough[0] if enough else min(costs))


def test_one_length_while_padding_is_cheap_and_more_when_not() -> None:
    similar = plain_rows(*[60, 64, 70, 72] * 4)
    mixed = plain_rows(*[9] * 40, *[65] * 40)
    spread = plain_rows(*[9] * 120, *[129] * 40, *[513] * 20)
    lengths = [{b.length for b in make_batches(rows, 4, 8)} for rows in (similar, mixed, spread)]
    assert lengths == [{72}, {8, 64}, {8, 128, 512}]


def test_a_length_of_its_own_is_not_worth_empty_rows() -> None:
    """One short row among few: its own batch would run more tokens than padding it does."""
    assert {b.length for b in make_batches(plain_rows(33, 65, 65, 65), 4, 8)} == {64}


def test_a_row_that_counts_nowhere_weighs_nothing() -> None:
    masked = Row(np.arange(9, dtype=np.int32), np.zeros(9, dtype=np.bool_))
    (batch,) = make_batches([masked], 2, 8)
    assert batch.tokens == 0 and not batch.weights.any() and len(batch.weights) == 8


def test_no_rows_no_batches() -> None:
    assert make_batches([], 4, 8) == []


def test_validation_keeps_the_order_and_training_is_shuffled_alike_each_time() -> None:
    rows = plain_rows(*[20] * 40)
    kept = [i for batch in make_batches(rows, 4, 8) for i in batch.rows]
    first, again, other = ([b.rows for b in make_batches(rows, 4, 8, seed)] for seed in (0, 0, 1))
    assert kept == list(range(40))
    assert first == again != other
    assert sum(abs(a - b) == 1 for group in first for a, b in combinations(group, 2)) < 10


@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 99), st.integers(0, 3))
def test_an_epoch_is_a_permutation(batches: int, epochs: int, seed: int, repeat: int) -> None:
    steps = order(batches, batches * epochs, seed, repeat)
    assert steps.shape == (batches * epochs,)
    for epoch in steps.reshape(epochs, batches):
        assert sorted(epoch.tolist()) == list(range(batches))


@given(st.integers(1, 30), st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))
def test_a_shorter_order_begins_a_longer_one(batches: int, short: int, more: int, seed: int) -> None:
    longer = order(batches, short + more, seed, 0)
    assert np.array_equal(order(batches, short, seed, 0), longer[:short])


def test_orders_differ_by_seed_repeat_and_epoch() -> None:
    orders = [order(30, 60, seed, repeat).tolist() for seed, repeat in ((0, 0), (1, 0), (0, 1))]
    halves = [half for steps in orders for half in (steps[:30], steps[30:])]
    assert all(a != b for a, b in combinations(halves, 2))


@pytest.mark.parametrize(
    ("iters", "epochs", "expected"), [(7, None, 7), (None, 2, 20), (None, 0.25, 2), (None, 0.01, 1)]
)
def test_steps_for(iters: int | None, epochs: float | None, expected: int) -> None:
    assert steps_for(TrainerConfig(iters=iters, epochs=epochs), batches=10) == expected
