"""Short timed trainings, to choose how many trials train at the same time and to say what a study will cost."""

import math
import time
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from lora_core import backend
from lora_core.batches import steps_for
from lora_core.config import TrainConfig
from lora_core.engine import Engine
from lora_core.measured import Measured, Probe
from lora_core.trial import TrialSpec

STEPS = 4  # of each slot; the first compiles and is not timed


def probe(engine: Engine, samples: list[TrainConfig], most: int) -> Probe:
    """Trains some of `samples` for a few steps at 1, 2, 4, … up to `most` slots. Nothing of it remains."""
    began = time.perf_counter()
    _train(engine, samples, 1)  # fills the caches
    fixed = time.perf_counter() - began
    measured = [_train(engine, samples, slots) for slots in _counts(most)]
    best = max(measured, key=lambda each: each.tokens_per_second)
    steps = sum(_steps(engine, sample) for sample in samples) / len(samples)
    trainable = [_trainable(engine, sample) for sample in samples]
    seconds = steps * best.step_seconds / best.slots
    return Probe(best.slots, measured, best.peak_gb, seconds, fixed, (min(trainable), max(trainable)))


def _counts(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length())]


def _train(engine: Engine, samples: list[TrainConfig], slots: int) -> Measured:
    before, engine.slots = engine.slots, slots
    backend.reset_peak_memory()
    with TemporaryDirectory() as folder:
        for number, sample in enumerate(islice(cycle(samples), slots)):
            engine.start(_spec(sample, Path(folder) / str(number)))
        _advance(engine, 1)
        tokens, began = engine.tokens, time.perf_counter()
        _advance(engine, STEPS)
        seconds, tokens = time.perf_counter() - began, engine.tokens - tokens
        for slot, *_ in list(engine.running):
            engine.stop(slot.spec.name)
    engine.slots = before
    engine.events.clear()
    return Measured(slots, seconds / (STEPS - 1), tokens / seconds, backend.peak_memory_gb())


def _advance(engine: Engine, steps: int) -> None:
    """Until each slot has done that many, and the device has too."""
    while min(slot.step for slot, *_ in engine.running) < steps:
        engine.advance()
    engine._listen()


def _spec(sample: TrainConfig, folder: Path) -> TrialSpec:
    trainer = replace(sample.trainer, iters=STEPS + 1, epochs=None, eval_every=STEPS + 1)
    return TrialSpec(folder.name, "trial", replace(sample, trainer=trainer).to_dict(), str(folder))


def _steps(engine: Engine, sample: TrainConfig) -> float:
    """The sample's steps, with its evaluations as so many steps' worth: they have no backward pass."""
    feed = engine.feed(sample)
    steps = steps_for(sample.trainer, len(feed.train))
    evaluations = math.ceil(steps / sample.trainer.eval_every)
    return steps + evaluations * len(feed.valid) / 3


def _trainable(engine: Engine, sample: TrainConfig) -> int:
    sites = engine._sites(sample, engine._depth(sample))
    shapes = [site.module.shapes() for site in sites]
    return sample.lora_parameters.rank * sum(math.prod(a) + math.prod(b) for a, b in shapes)
