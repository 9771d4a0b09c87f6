"""N batches a step: as one batch N times as large, in the memory of one."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from lora_core import full, step
from lora_core.batches import Batch
from lora_core.config import TrainConfig
from tests.lora_core.helpers import losses, new_engine, run, weights

N, STEPS = 2, 4
SETTINGS = {"iters": STEPS, "eval_every": 1, "batch_size": 2, "learning_rate": 2e-3}


def joined(batches: list[Batch], index: int) -> Batch:
    """One batch of all the rows of some that have one length."""
    size = batches[0].inputs.size
    positions = [batch.positions + place * size for place, batch in enumerate(batches)]
    parts = {name: np.concatenate([getattr(batch, name) for batch in batches])
             for name in ("inputs", "targets", "weights")}  # fmt: skip
    rows = tuple(row for batch in batches for row in batch.rows)
    tokens = sum(batch.tokens for batch in batches)
    return replace(batches[0], index=index, positions=np.concatenate(positions), tokens=tokens, rows=rows, **parts)


def apart(make_spec, train_type: str) -> tuple[float, float]:
    """N batches a step against the same rows in one: the largest relative difference of losses, and of weights."""
    small = make_spec("small", **SETTINGS, train_type=train_type, grad_accumulation=N)
    engine = new_engine()
    run(engine, small)
    config = TrainConfig.from_dict(small.config)
    feed = engine.feed(config)
    order = engine._order(small, config, feed).reshape(STEPS, N)
    assert len({batch.tokens for batch in feed.train}) > 1
    large, other = make_spec("large", **SETTINGS, train_type=train_type), new_engine()
    their_feed = other.feed(TrainConfig.from_dict(large.config))
    their_feed.train = [joined([feed.train[i] for i in step], index) for index, step in enumerate(order)]
    other._order = lambda *_: np.arange(STEPS)  # type: ignore[method-assign]
    run(other, large)
    ours, theirs = (np.array([row[1:] for row in losses(spec)[1:]]) for spec in (small, large))
    found, expected = weights(small), weights(large)
    return np.abs(ours / theirs - 1).max(), max(float(np.abs(found[n] - expected[n]).max()) for n in found)


@pytest.mark.parametrize("train_type", ["lora", "dora", "full"])
def test_it_equals_a_larger_batch(make_spec, even_steps: None, train_type: str) -> None:
    of_losses, of_weights = apart(make_spec, train_type)
    assert of_losses < 1e-5 and of_weights < 1e-6


@pytest.mark.parametrize("module, train_type", [(step, "lora"), (full, "full")])
def test_weighing_batches_otherwise_is_noticed(
    make_spec, monkeypatch, even_steps: None, module, train_type: str
) -> None:
    """A token of the second batch of a step counts twice; and losses are means over the first batch's tokens."""
    added, counted = step.added, step.counted

    def doubled(before, new):
        return added(before, [tuple(2 * array for array in part) for part in new] if before else new)

    monkeypatch.setattr(module, "added", doubled)
    _, of_weights = apart(make_spec, train_type)
    assert of_weights > 1e-4
    monkeypatch.setattr(module, "counted", lambda batches: counted(batches[:1]))
    of_losses, _ = apart(make_spec, train_type)
    assert of_losses > 1e-2


def test_steps_are_optimizer_steps(make_spec) -> None:
    engine, spec = new_engine(), make_spec("trial", **SETTINGS, grad_accumulation=N)
    (record,) = run(engine, spec)
    assert record.step == record.planned_steps == engine.steps == STEPS
    assert [at for at, *_ in losses(spec)] == list(range(STEPS + 1))
    by_epoch = make_spec("epochs", **{**SETTINGS, "iters": None}, epochs=2.0, grad_accumulation=3)
    (record,) = run(engine, by_epoch)
    assert record.step == 2 * len(engine.feed(TrainConfig.from_dict(by_epoch.config)).train) // 3


@pytest.mark.parametrize("train_type", ["lora", "full"])
def test_it_takes_the_memory_of_one_batch(make_spec, train_type: str) -> None:
    def peak(name: str, **settings) -> float:
        engine = new_engine(train=16)
        engine.start(make_spec(name, train_type=train_type, num_layers=4, **settings))
        engine.advance()
        mx.synchronize()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        engine.advance()
        engine.listen()
        return mx.get_peak_memory() - before

    one = peak("one", batch_size=2)
    assert peak("four", batch_size=2, grad_accumulation=4) < 1.5 * one < peak("large", batch_size=8)
