"""Adapters and moments of the slots that train together, stacked so that one operation serves many layers and slots.

Layers of one kind that the same slots adapt are a *group*: A is [L, m, in, r], B is [L, m, r, out], DoRA's lengths are
[L, m, out], for its L layers and m slots. Slots lie in the order of their lowest adapted block, so that those which
adapt a layer are the first m; one of them that leaves the layer out (by `keys`) has zeros there. Ranks are filled up
with zeros to a power of two, so that few different shapes are ever run.
"""

import itertools
from collections.abc import Sequence

import mlx.core as mx

from lora_core.adapters import Site, Weights, at_rank, initial
from lora_core.slot import Slot

# MKL multiplies matrices narrower than this with another kernel, whose last bits differ from those of wider ones.
LEAST_RANK = 16

State = tuple[Weights, ...]  # adapters, their first moments, their second moments
Group = tuple[Site, ...]


class Stacks:
    """The arrays of `slots`, by group. `alive` [K]: false from the first value on that was not finite."""

    def __init__(self, sites: Sequence[Site], dora: bool = False) -> None:
        self.sites = sites
        self.dora = dora
        self.slots: list[Slot] = []
        self.alive = mx.ones((0,), dtype=mx.bool_)
        self.state: dict[Group, State] = {}

    def restack(self, slots: list[Slot], given: dict[Slot, dict[int, State]]) -> None:
        """Holds these slots from now on. New ones get the state in `given`, by site.index, or initial adapters and
        zero moments."""
        rank = max([LEAST_RANK, *(1 << (slot.config.lora_parameters.rank - 1).bit_length() for slot in slots)])
        old = {site.index: tuple(_at(stack, i) for stack in state) for group, state in self.state.items()
               for i, site in enumerate(group)}  # fmt: skip
        groups = self._groups(slots)
        self.state = {
            group: _stacked([self._rows(site, slots, old.get(site.index), given, rank) for site in group])
            for group in groups
        }
        new = mx.ones((len(set(slots) - set(self.slots)),), dtype=mx.bool_)
        self.alive = _taken(mx.concatenate([self.alive, new]), _places(self.slots, slots))
        self.slots = list(slots)

    def _groups(self, slots: Sequence[Slot]) -> list[Group]:
        groups: dict[object, Group] = {}
        for site in self.sites:
            if any(slot.adapts(site) for slot in slots):
                kind = (members(slots, site), site.key, site.module.shapes())
                groups[kind] = (*groups.get(kind, ()), site)
        return list(groups.values())

    def _rows(
        self, site: Site, slots: list[Slot], old: State | None, given: dict[Slot, dict[int, State]], rank: int
    ) -> State:
        """One layer's: the rows that are there, new ones behind them, then all in the order of the slots."""
        there = self.slots[: members(self.slots, site)] if old else []
        slots = slots[: members(slots, site)]
        fresh = [self._first(slot, site, given.get(slot), rank) for slot in slots if slot not in there]
        rows = _stacked(fresh) if fresh else [None] * 3
        kept = [at_rank(weights, rank) for weights in old] if old else [None] * 3
        places = _places(there, slots)
        joined = [_concatenated([part for part in parts if part]) for parts in zip(kept, rows, strict=True)]
        return tuple(tuple(_taken(array, places) for array in weights) for weights in joined)

    def _first(self, slot: Slot, site: Site, given: dict[int, State] | None, rank: int) -> State:
        """A new slot's row of one layer."""
        zeros = self._zeros(site, rank)
        if not slot.adapts(site):
            return zeros, zeros, zeros
        if given:
            return tuple(at_rank(weights, rank) for weights in given[site.index])
        adapter = initial(site, slot.config.lora_parameters, slot.config.seed, slot.spec.repeat, self.dora)
        return at_rank(adapter, rank), zeros, zeros

    def _zeros(self, site: Site, rank: int) -> Weights:
        a, b = site.module.shapes()
        pair = mx.zeros((*a[:-1], rank)), mx.zeros((*b[:-2], rank, b[-1]))
        return (*pair, mx.zeros(b[-1:])) if self.dora else pair

    def of(self, slot: Slot, parts: int = 3) -> dict[int, State]:
        """The first `parts` of the slot's state at its own rank, by site.index, of the layers it adapts."""
        rank, k = slot.config.lora_parameters.rank, self.slots.index(slot)
        return {
            site.index: tuple(at_rank(tuple(array[i, k] for array in weights), rank) for weights in state[:parts])
            for group, state in self.state.items()
            for i, site in enumerate(group)
            if slot.adapts(site)
        }

    def subset(self, due: Sequence[Slot]) -> dict[Group, State]:
        """The state of the due slots, in the groups that one of them adapts."""
        groups = {group: state for group, state in self.state.items() if any(slot.adapts(group[0]) for slot in due)}
        if len(due) == len(self.slots):
            return groups
        index = self.index(due)
        kept = {group: index[: members(due, group[0])] for group in groups}
        return {
            group: tuple(tuple(array[:, kept[group]] for array in weights) for weights in state)
            for group, state in groups.items()
        }

    def put_back(self, due: Sequence[Slot], state: dict[Group, State], alive: mx.array) -> None:
        """Takes the due slots' new state."""
        if len(due) == len(self.slots):
            self.state, self.alive = state, alive
            return
        index = self.index(due)
        self.alive[index] = alive
        for group, stacks in state.items():
            k = index[: members(due, group[0])]
            for old, new in zip(self.state[group], stacks, strict=True):
                for array, changed in zip(old, new, strict=True):
                    array[:, k] = changed

    def index(self, due: Sequence[Slot]) -> mx.array:
        return mx.array([self.slots.index(slot) for slot in due])


def members(slots: Sequence[Slot], site: Site) -> int:
    """How many of the slots run through the site's block with adapters: the first ones."""
    return sum(slot.bottom <= site.layer for slot in slots)


def _places(there: list[Slot], slots: list[Slot]) -> list[int]:
    """Where each slot's row lies: as in `there`, or else behind, in the order of coming."""
    fresh = itertools.count(len(there))
    return [there.index(slot) if slot in there else next(fresh) for slot in slots]


def _at(weights: Weights, index: int) -> Weights:
    return tuple(array[index] for array in weights)


def _stacked(states: list[State]) -> State:
    return tuple(tuple(map(mx.stack, zip(*weights, strict=True))) for weights in zip(*states, strict=True))


def _concatenated(weights: list[Weights]) -> Weights:
    return tuple(map(mx.concatenate, zip(*weights, strict=True)))


def _taken(array: mx.array, places: list[int]) -> mx.array:
    return array if places == list(range(len(array))) else array[mx.array(places, dtype=mx.int32)]
