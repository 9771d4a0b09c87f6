"""How many trials should share a pass, what a study will take, whether packing moves a bit: by short trainings."""

import statistics
import time
from itertools import cycle, islice
from typing import Any

import mlx.core as mx
import numpy as np

from lora_core import backend
from lora_core.batches import steps_for
from lora_core.config import TrainConfig
from lora_core.engine import Engine
from lora_core.feed import Feed
from lora_core.measured import Measured, Probe
from lora_core.timing import STEPS, Timed, longest, timed

# Twice the slots must be this many times faster: they take memory, and a search that learns starts trials sooner.
GAIN = 1.2
DEPTHS = 4  # numbers of blocks that are timed alone, of several kinds of trials fewer each; between, it is interpolated

Kind = tuple[Any, ...]


def probe(engine: Engine, samples: list[TrainConfig], most: int, choose: bool = True) -> Probe:
    """Times samples alone and in packs of 2, 4, … up to `most` slots, and chooses the fastest number that memory
    allows; never one that is slower than one at a time. Without `choose`, `most` is what will be used; where they do
    not fit, that is an error."""
    alone, largest = Alone(engine, samples), Largest(engine, samples)
    measured, packs = [alone.measured(samples, largest.peak_gb(1))], {1: alone.first}
    best = measured[0]
    for slots in _counts(most) if choose else [most][: most - 1]:
        if choose and not _fits(engine, samples[0], measured):
            break
        try:
            peak_gb = largest.peak_gb(slots)
            packs[slots] = timed(engine, _first(samples, slots))
        except RuntimeError as error:
            if not choose or not backend.is_out_of_memory(error):
                raise
            break
        gain = sum(alone.seconds(config) for config in _first(samples, slots)) / packs[slots].seconds
        measured.append(Measured(slots, measured[0].tokens_per_second * gain, peak_gb))
        if not choose or measured[-1].tokens_per_second >= GAIN * best.tokens_per_second:
            best = measured[-1]
        elif slots >= best.slots << _tries():
            break
    found = _chosen(engine, samples, alone, largest, best, measured, packs)
    backend.reset_peak_memory()  # what was tried and not chosen is not the study's
    return found


def _tries() -> int:
    """How many doublings of the slots in a row may bring nothing. A GPU takes about as long for many deep trials as for
    one, but gains nothing by shallow ones beside a deep one, and the samples may be in such an order."""
    return 1 if backend.is_cpu() else 2


def _chosen(
    engine: Engine, samples: list[TrainConfig], alone: "Alone", largest: "Largest", best: Measured,
    measured: list[Measured], packs: dict[int, Timed],
) -> Probe:  # fmt: skip
    notes = []
    if best.slots > 1:
        notes += [_bits(packs[1], packs[best.slots], best.slots), *_joining(engine, samples, best, packs)]
    gain = best.tokens_per_second / measured[0].tokens_per_second
    memory = best.peak_gb + _still_to_cache(engine, samples)
    trial = statistics.mean(alone.trial_seconds(sample) for sample in samples) / gain
    trainable = min(largest.trainable), max(largest.trainable)
    return Probe(
        best.slots, engine.joins, measured, memory, trial, alone.fixed_seconds(samples), trainable, notes
    )  # fmt: skip


class Alone:
    """Single trials, timed: of each kind a few depths. `first`: the first sample."""

    def __init__(self, engine: Engine, samples: list[TrainConfig]) -> None:
        self.engine = engine
        alike: dict[Kind, list[TrainConfig]] = {}
        for sample in samples:
            alike.setdefault(_kind(sample), []).append(sample)
        most = max(2, DEPTHS // len(alike))
        self.timed = {kind: self._few_depths(those, most) for kind, those in alike.items()}
        self.first = self.timed[_kind(samples[0])][self.depth(samples[0])]

    def _few_depths(self, samples: list[TrainConfig], most: int) -> dict[int, Timed]:
        by_depth = {self.depth(sample): sample for sample in reversed(samples)}
        depths = sorted(by_depth)
        places = np.linspace(0, len(depths) - 1, min(most, len(depths))).round().astype(int)
        kept = {self.depth(samples[0]), *(depths[place] for place in places)}
        return {depth: timed(self.engine, [by_depth[depth]]) for depth in sorted(kept)}

    def depth(self, config: TrainConfig) -> int:
        depth = self.engine.base.info.depth
        return depth - config.bottom(depth)

    def _at(self, config: TrainConfig, name: str) -> float:
        by_depth = self.timed[_kind(config)]
        return float(np.interp(self.depth(config), list(by_depth), [getattr(each, name) for each in by_depth.values()]))

    def seconds(self, config: TrainConfig) -> float:
        """Of one step."""
        return self._at(config, "seconds")

    def measured(self, samples: list[TrainConfig], peak_gb: float) -> Measured:
        seconds = statistics.mean(self.seconds(sample) for sample in samples)
        tokens = statistics.mean(self._at(sample, "tokens") for sample in samples)
        return Measured(1, tokens / seconds, peak_gb)

    def trial_seconds(self, config: TrainConfig) -> float:
        """Steps and evaluations of a trial; the evaluation before its first step is the study's, not its own."""
        feed = self.engine.feed(config)
        steps = steps_for(config.trainer, len(feed.train))
        evaluations = -(-steps // config.trainer.eval_every)
        return steps * self.seconds(config) + evaluations * len(feed.valid) * self._at(config, "evaluation")

    def fixed_seconds(self, samples: list[TrainConfig]) -> float:
        """Frozen blocks of every batch once, and the base model's loss."""
        feed = self.engine.feed(samples[0])
        bottom = self.engine.base.info.depth - min(map(self.depth, samples))
        batches = len(feed.valid) + max(_batches(feed, sample) for sample in samples)
        prefix = _prefix_seconds(self.engine, feed, bottom) if bottom else 0.0
        return batches * prefix + len(feed.valid) * self._at(samples[0], "evaluation")


class Largest:
    """The samples that take the most memory at the same time: those that are timed may all be small ones."""

    def __init__(self, engine: Engine, samples: list[TrainConfig]) -> None:
        self.engine = engine
        self.trainable = [engine.learned(sample).parameters(sample) for sample in samples]
        ordered = [samples[place] for place in np.argsort(self.trainable, stable=True)[::-1]]
        first = {(_kind(sample), sample.num_layers): sample for sample in reversed(ordered)}
        peaks = {kind: self._stepped([sample]) for kind, sample in first.items()}
        self.samples = sorted(ordered, key=lambda sample: peaks[_kind(sample), sample.num_layers], reverse=True)
        self._alone = max(peaks.values())

    def peak_gb(self, slots: int) -> float:
        """Of so many, at a step on the longest batch, with the best adapter of each beside it."""
        stepped = self._alone if slots == 1 else self._stepped(_first(self.samples, slots))
        return stepped + slots * max(self.trainable) * 4 / 1e9

    def _stepped(self, configs: list[TrainConfig]) -> float:
        return timed(self.engine, configs, 1, longest).peak_gb


def _kind(config: TrainConfig) -> Kind:
    """What decides a step's time and memory, beside its depth and how much is learned."""
    trainer = config.trainer
    return config.train_type, trainer.batch_size, trainer.grad_accumulation, trainer.grad_checkpoint


def _prefix_seconds(engine: Engine, feed: Feed, bottom: int) -> float:
    """Of one batch, where as many as the cache takes run at a time."""
    first = feed.train[0]
    alike = [batch.inputs for batch in feed.train[: engine.prefixes.at_once(first)] if batch.length == first.length]
    start = time.perf_counter()
    mx.eval(engine.split.prefix(mx.array(np.concatenate(alike)), bottom))
    return (time.perf_counter() - start) / len(alike)


def _batches(feed: Feed, config: TrainConfig) -> int:
    """How many different training batches a trial takes."""
    return min(len(feed.train), steps_for(config.trainer, len(feed.train)) * config.trainer.grad_accumulation)


def _counts(most: int) -> list[int]:
    """2, 4, … up to `most`."""
    return [1 << power for power in range(1, most.bit_length())]


def _first(samples: list[TrainConfig], count: int) -> list[TrainConfig]:
    return list(islice(cycle(samples), count))


def _fits(engine: Engine, config: TrainConfig, measured: list[Measured]) -> bool:
    """Whether twice the slots would stay within the memory that training may use, going by the growth so far."""
    last = measured[-1]
    before = measured[-2].peak_gb if len(measured) > 1 else mx.get_active_memory() / 1e9
    slots_before = measured[-2].slots if len(measured) > 1 else 0
    growth = (last.peak_gb - before) / (last.slots - slots_before)
    return (last.peak_gb + last.slots * growth) * 1e9 < config.trainer.memory_fraction * backend.memory()


def _still_to_cache(engine: Engine, samples: list[TrainConfig]) -> float:
    """GB of prefixes that the study will keep in memory beyond those that are there."""
    sizes: dict[Any, int] = {}
    for sample in samples:
        feed, bottom = engine.feed(sample), sample.bottom(engine.base.info.depth)
        padded = statistics.mean(batch.inputs.size for batch in feed.train) * _batches(feed, sample)
        padded += sum(batch.inputs.size for batch in feed.valid)
        if bottom and engine.prefixes.per_token:
            sizes[feed.key, bottom] = int(padded * engine.prefixes.per_token)
    whole = min(sum(sizes.values()), engine.prefixes.budget)
    return max(0, whole - engine.prefixes.used) / 1e9


def _bits(alone: Timed, packed: Timed, slots: int) -> str:
    """What holds on this device, of the first sample alone and among others."""
    pairs = list(zip(alone.adapter, packed.adapter, strict=True))
    same = np.array_equal(alone.losses, packed.losses, equal_nan=True)  # of trials that diverge, too
    if same and all(mx.array_equal(a, b, equal_nan=True).item() for a, b in pairs):
        return f"Checked: {slots} trials packed give what each gives alone, to the bit."
    largest = max(mx.abs(a).max().item() for a, _ in pairs)
    apart = max(mx.abs(a - b).max().item() for a, b in pairs) / largest
    return f"Checked: {slots} trials packed differ from each alone by {apart:.0e} of the adapter after {STEPS} steps."


def _joining(engine: Engine, samples: list[TrainConfig], best: Measured, packs: dict[int, Timed]) -> list[str]:
    """Lets trials of different depth share a pack only where that is faster."""
    configs = _first(samples, best.slots)
    if not engine.joins or len({config.bottom(engine.base.info.depth) for config in configs}) < 2:
        return []
    engine.joins = False
    apart = timed(engine, configs).seconds
    engine.joins = packs[best.slots].seconds <= apart
    if engine.joins:
        return []
    return ["Trials of different depth run one depth at a time: that is faster here than together."]
