"""The adapters and moments of the slots that train together, stacked by layer along a first axis."""

import itertools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from lora_core.adapters import Site, at_rank, initial
from lora_core.config import TrainConfig
from lora_core.slot import Slot
from lora_core.step import Computation, Pair, Pairs, Rows, Traits

# MKL multiplies matrices narrower than this with another kernel, whose last bits differ from those of wider ones.
LEAST_RANK = 16

State = tuple[Pair, ...]  # A and B of one layer, their first moments, their second moments; each [m, …]


class Pack:
    """Slots in the order of their lowest adapted block: those that adapt a block are the first m slots, and its
    layers' stacks hold these. A layer is there if some slot adapts it; a slot of the m that leaves it out (by
    `keys`) has zeros there. Ranks are padded to a power of two, so that few different shapes are ever run.

    Slots come and go at once; the stacks follow before they are next used, for all changes together."""

    def __init__(self, computation: Computation, sites: Sequence[Site], config: TrainConfig) -> None:
        self.computation = computation
        self.all_sites = sites
        lora = config.lora_parameters
        self.drop_input = lora.dropout_on == "input"
        self.base_dtype = lora.compute_dtype == "base"
        self.checkpoint = config.trainer.grad_checkpoint
        self.slots: list[Slot] = []
        self._adapters: dict[Slot, dict[int, Pair]] = {}  # to start from, of slots not stacked yet
        self._stacked: list[Slot] = []  # whose rows the stacks hold, in their order
        self._state: dict[int, State] = {}  # by site.index
        self._alive = mx.ones((0,), dtype=mx.bool_)  # [K]
        self._constants: dict[tuple[str, ...], dict[str, mx.array]] = {}

    def add(self, slot: Slot, adapter: dict[int, Pair] | None = None) -> None:
        """Gives the slot its initial adapters, or those given by site.index, and zero moments."""
        self.slots = sorted([*self.slots, slot], key=lambda other: other.bottom)
        if adapter is not None:
            self._adapters[slot] = adapter

    def remove(self, slot: Slot) -> None:
        """Takes the slot out."""
        self.slots = [other for other in self.slots if other is not slot]

    def adapter(self, slot: Slot) -> dict[int, Pair]:
        """The slot's A and B at its own rank, by site.index, of the layers it adapts."""
        self._restack()
        rank, k = slot.config.lora_parameters.rank, self.slots.index(slot)
        own = [site.index for site in self.all_sites if slot.adapts(site)]
        adapters = {index: self._state[index][0] for index in own}
        return {index: at_rank(a[k], b[k], rank) for index, (a, b) in adapters.items()}

    def _restack(self) -> None:
        """Brings the stacks to the slots that are there now."""
        if self.slots == self._stacked:
            return
        rank = self._rank()
        self._state = {site.index: self._stacks(site, rank) for site in self._wanted_sites(self.slots)}
        fresh = [slot for slot in self.slots if slot not in self._stacked]
        alive = mx.concatenate([self._alive, mx.ones((len(fresh),), dtype=mx.bool_)])
        self._alive = _taken(alive, self._places(self._stacked, self.slots))
        self._stacked = list(self.slots)
        self._adapters.clear()
        self._constants.clear()

    def _stacks(self, site: Site, rank: int) -> State:
        """What is stacked already, new rows behind it, then all in the order of the slots."""
        there = self._stacked[: members(self._stacked, site)] if site.index in self._state else []
        slots = self.slots[: members(self.slots, site)]
        places = self._places(there, slots)
        fresh = [at_rank(*self._first(slot, site), rank) for slot in slots if slot not in there]
        rows = [_stack(fresh), *[_zeros(site, len(fresh), rank)] * 2] if fresh else [None] * 3
        old = [at_rank(*pair, rank) for pair in self._state[site.index]] if there else [None] * 3
        joined = [_concatenated([pair for pair in pairs if pair]) for pairs in zip(old, rows, strict=True)]
        return tuple((_taken(a, places), _taken(b, places)) for a, b in joined)

    @staticmethod
    def _places(there: list[Slot], slots: list[Slot]) -> list[int]:
        """Where each slot's row lies: as in `there`, or else behind, in the order of coming."""
        fresh = itertools.count(len(there))
        return [there.index(slot) if slot in there else next(fresh) for slot in slots]

    def _first(self, slot: Slot, site: Site) -> Pair:
        lora = slot.config.lora_parameters
        if not slot.adapts(site):
            a, b = _zeros(site, 1, lora.rank)
            return a[0], b[0]
        given = self._adapters.get(slot)
        return given[site.index] if given else initial(site, lora, slot.config.seed, slot.spec.repeat)

    def step(self, due: Sequence[Slot], rows: Rows) -> mx.array:
        """Starts one optimizer step of the slots in `due`, which are in the pack's order; returns their losses
        [len(due)] without waiting for them."""
        self._restack()
        losses, changed = self._stepped(due, rows)
        mx.async_eval(losses, changed)  # when nothing else holds the old state: its memory can be taken over
        return losses

    def _stepped(self, due: Sequence[Slot], rows: Rows) -> tuple[mx.array, list[Any]]:
        traits, sites = self._traits(due), self._wanted_sites(due)
        adapters, first, second = self._subset(due, sites)
        settings = self._settings(due, sites, traits)
        adapters, (first, second), losses, alive = self.computation.step(
            sites, traits, adapters, (first, second), settings, rows
        )
        self._put_back(due, sites, list(zip(adapters, first, second, strict=True)), alive)
        return losses, [adapters, first, second, alive]

    def read_alive(self) -> None:
        """Brings each slot's `alive` up to the device's; waits for it."""
        for slot, alive in zip(self._stacked, self._alive.tolist(), strict=True):
            slot.alive = alive

    def evaluate(self, due: Sequence[Slot], rows: Rows) -> mx.array:
        """Sum of the losses of each due slot's batch, [len(due)]."""
        self._restack()
        sites = self._wanted_sites(due)
        adapters, _, _ = self._subset(due, sites)
        multiplier = self._constant(due, sites)["multiplier"]
        return self.computation.evaluate(sites, self._traits(due, training=False), adapters, multiplier, rows)

    def boundary(self, slot: Slot) -> int:
        """The lowest block that the slot's rows must run through at each step."""
        return slot.bottom if self.computation.splits else 0

    def _traits(self, due: Sequence[Slot], training: bool = True) -> Traits:
        groups = tuple((boundary, len(list(slots))) for boundary, slots in itertools.groupby(due, key=self.boundary))
        dropping = training and any(slot.config.lora_parameters.dropout > 0 for slot in due)
        return Traits(groups, self.drop_input, self.base_dtype, dropping, training and self.checkpoint)

    def _settings(self, due: Sequence[Slot], sites: list[Site], traits: Traits) -> dict[str, mx.array]:
        moving = np.array([(slot.rate, *slot.correction()) for slot in due], dtype=np.float32)
        alive = self._alive[self._index(due)]
        settings = {"moving": mx.array(moving.T), "alive": alive, **self._constant(due, sites)}
        if traits.dropping:
            settings["key"] = mx.array(np.stack([self._keys(slot, sites) for slot in due]))
        return settings

    def _constant(self, due: Sequence[Slot], sites: list[Site]) -> dict[str, mx.array]:
        """What a trial keeps from its first step to its last."""
        names = tuple(slot.spec.name for slot in due)
        if names not in self._constants:
            configs = [slot.config for slot in due]
            values = {
                "decay": [c.optimizer.weight_decay if c.optimizer.name == "adamw" else 0.0 for c in configs],
                "clip": [c.trainer.grad_clip or np.inf for c in configs],
                "keep": [1 - c.lora_parameters.dropout for c in configs],
                "multiplier": [[_multiplier(slot, site) for slot in due] for site in sites],  # [S, K]
            }
            self._constants[names] = {n: mx.array(np.array(value, dtype=np.float32)) for n, value in values.items()}
        return self._constants[names]

    def _keys(self, slot: Slot, sites: list[Site]) -> np.ndarray:
        """A dropout key per site, uint32 [S, 2], from (seed, repeat, step, layer)."""
        indices = [site.index for site in sites]
        sequence = np.random.SeedSequence([slot.config.seed, slot.spec.repeat, slot.step])
        return sequence.generate_state(2 * (max(indices) + 1)).reshape(-1, 2)[indices]

    def _wanted_sites(self, slots: Sequence[Slot]) -> list[Site]:
        return [site for site in self.all_sites if any(slot.adapts(site) for slot in slots)]

    def _rank(self) -> int:
        largest = max((slot.config.lora_parameters.rank for slot in self.slots), default=1)
        return max(LEAST_RANK, 1 << (largest - 1).bit_length())

    def _index(self, due: Sequence[Slot]) -> mx.array:
        return mx.array([self.slots.index(slot) for slot in due])

    def _subset(self, due: Sequence[Slot], sites: list[Site]) -> list[Pairs]:
        """Adapters and both moments of the due slots, by site."""
        state = [self._state[site.index] for site in sites]
        if len(due) < len(self.slots):
            index = self._index(due)
            kept = [index[: members(due, site)] for site in sites]
            state = [tuple((a[k], b[k]) for a, b in stacks) for stacks, k in zip(state, kept, strict=True)]
        return [list(part) for part in zip(*state, strict=True)]

    def _put_back(self, due: Sequence[Slot], sites: list[Site], state: list[State], alive: mx.array) -> None:
        if len(due) == len(self.slots):
            self._state, self._alive = {site.index: new for site, new in zip(sites, state, strict=True)}, alive
            return
        index = self._index(due)
        self._alive[index] = alive
        for site, stacks in zip(sites, state, strict=True):
            k = index[: members(due, site)]
            for (old_a, old_b), (new_a, new_b) in zip(self._state[site.index], stacks, strict=True):
                old_a[k], old_b[k] = new_a, new_b


def members(slots: Sequence[Slot], site: Site) -> int:
    """How many of the slots run through the site's block with adapters: the first ones, in the pack's order."""
    return sum(slot.bottom <= site.layer for slot in slots)


def _multiplier(slot: Slot, site: Site) -> float:
    return slot.config.lora_parameters.multiplier if slot.adapts(site) else 0.0


def _zeros(site: Site, slots: int, rank: int) -> Pair:
    a, b = site.module.shapes()
    return mx.zeros((slots, *a[:-1], rank)), mx.zeros((slots, *b[:-2], rank, b[-1]))


def _stack(pairs: list[Pair]) -> Pair:
    a, b = zip(*pairs, strict=True)
    return mx.stack(a), mx.stack(b)


def _concatenated(pairs: list[Pair]) -> Pair:
    a, b = zip(*pairs, strict=True)
    return mx.concatenate(a), mx.concatenate(b)


def _taken(array: mx.array, places: list[int]) -> mx.array:
    return array if places == list(range(len(array))) else array[mx.array(places, dtype=mx.int32)]
