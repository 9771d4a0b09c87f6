"""Short trainings of a few trials together, and what they take.

Trials are put into slots and stepped without records, files or evaluations; nothing of them remains but cached
prefixes, which a study needs anyway.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import mlx.core as mx

from lora_core import backend
from lora_core.batches import Batch
from lora_core.config import TrainConfig
from lora_core.engine import Engine
from lora_core.slot import CHECK_EVERY, Slot
from lora_core.trial import TrialSpec

STEPS = 3  # the first is not timed: it compiles
ROUNDS = 3  # of timed steps, at least; the best counts. On a CPU no more,
ENOUGH = 0.5  # and no more than these seconds.
# A GPU makes itself ready for new shapes in more than one step: there it goes on until the last time is no better than
SETTLED = 0.9  # this many times the best before it,
AT_MOST = 5.0  # or for so many seconds.
NEVER = 1 << 30
LONG = CHECK_EVERY  # steps of a rehearsed trial: more than any takes, so that the engine does not look at one

Choice = Callable[[Sequence[Batch]], int]  # of one of the batches, by its index


@dataclass
class Timed:
    """Of some trials that train together: seconds of one step of all of them at the mean padded length, and of one
    validation batch; tokens in the loss of such a step; peak memory; what the first of them came to."""

    seconds: float
    evaluation: float
    tokens: float
    peak_gb: float
    losses: list[float] = field(default_factory=list)
    adapter: list[mx.array] = field(default_factory=list)


def timed(engine: Engine, configs: Sequence[TrainConfig], steps: int = STEPS, choose: Choice | None = None) -> Timed:
    """Trains `configs` together for a few steps on one batch: without `choose`, one of mean padded length."""
    with _rehearsing(engine, configs, choose or _average) as slots:
        _cache_prefixes(engine)
        backend.reset_peak_memory()
        _advance(engine, slots, 1)
        mx.synchronize()
        first, pack, feed = engine.running[0]
        rounds: list[float] = []  # seconds of a step of all
        adapter: list[mx.array] = []
        start = time.perf_counter()
        while steps > 1 and not _steady(rounds, time.perf_counter() - start):
            rounds.append(_round(engine, slots, steps - 1))
            if not adapter:
                adapter = [part for _, pair in sorted(pack.adapter(first).items()) for part in pair]
        evaluation = _evaluation_seconds(engine)
        peak = backend.peak_memory_gb()
        engine.listen()
    padded = statistics.mean(batch.inputs.size for batch in feed.train)
    seconds = min(rounds, default=0.0) * padded / feed.train[first.order[0]].inputs.size
    tokens = len(configs) * first.per_step * statistics.mean(batch.tokens for batch in feed.train)
    return Timed(seconds, evaluation, tokens, peak, first.pending[:steps], adapter)


def _steady(rounds: list[float], spent: float) -> bool:
    """Whether enough steps have been timed."""
    if backend.is_cpu():
        return len(rounds) >= ROUNDS or spent >= ENOUGH
    return spent >= AT_MOST or (len(rounds) >= ROUNDS and rounds[-1] > SETTLED * min(rounds[:-1]))


def _round(engine: Engine, slots: list[Slot], steps: int) -> float:
    """Seconds of a step of all, over so many."""
    for slot in slots:
        slot.step = 1  # the engine looks at no trial that gets no further than this
    start, before = time.perf_counter(), engine.steps
    _advance(engine, slots, steps)
    mx.synchronize()
    return (time.perf_counter() - start) * len(slots) / (engine.steps - before)


def _advance(engine: Engine, slots: list[Slot], steps: int) -> None:
    """So many steps of each."""
    until = min(slot.step for slot in slots) + steps
    while min(slot.step for slot in slots) < until:
        engine.advance()


def _average(batches: Sequence[Batch]) -> int:
    mean = statistics.mean(batch.inputs.size for batch in batches)
    return min(range(len(batches)), key=lambda index: abs(batches[index].inputs.size - mean))


def longest(batches: Sequence[Batch]) -> int:
    return max(range(len(batches)), key=lambda index: batches[index].inputs.size)


@contextmanager
def _rehearsing(engine: Engine, configs: Sequence[TrainConfig], choose: Choice) -> Iterator[list[Slot]]:
    """The trials are in slots inside the `with`, with the chosen batch in every step, and gone after it."""
    done = engine.steps, engine.tokens
    for number, config in enumerate(configs):
        trainer = replace(config.trainer, iters=LONG, epochs=None, eval_every=NEVER, patience=None)
        spec = TrialSpec(f"probe-{number}", "trial", {}, "")
        slot, pack, feed = engine.place(spec, replace(config, trainer=trainer, resume_adapter_file=None))
        slot.order[:] = choose(feed.train)
        pack.add(slot)
        engine.running.append((slot, pack, feed))
    slots = [slot for slot, *_ in engine.running]
    try:
        yield slots
    finally:
        for slot, pack, _ in engine.running:
            pack.remove(slot)
        engine.running.clear()
        engine.listen()
        engine.steps, engine.tokens = done


def _cache_prefixes(engine: Engine) -> None:
    """Those that the trials will take: a study pays for them once, not at every step."""
    for slot, _, feed in engine.running:
        batch = feed.train[slot.order[0]]
        mx.eval(feed.rows([[batch]], "train", [engine.computation.boundary(slot)]).hidden)


def _evaluation_seconds(engine: Engine) -> float:
    """Of one validation batch, a slot's share; the second time, when everything is compiled and cached."""
    _, pack, feed = engine.running[0]
    due = [slot for slot, other, _ in engine.running if other is pack]
    for _ in range(2):
        start = time.perf_counter()
        rows = feed.rows(
            [feed.valid[:1]] * len(pack.slots), "valid", [engine.computation.boundary(slot) for slot in pack.slots]
        )
        mx.eval(pack.evaluate(pack.slots, rows))
    return (time.perf_counter() - start) / len(due)
