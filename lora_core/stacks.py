"""Adapters and moments of the slots that train together, stacked so that one operation serves many layers and slots.

Layers of one kind that the same slots adapt are a *group*: A is [L, m, in, r], B is [L, m, r, out], DoRA's lengths are
[L, m, out], for its L layers and m slots. Slots lie in the order of their lowest adapted block, so that those which
adapt a layer are the first m; one of them that leaves the layer out (by `keys`) has zeros there. Ranks are filled up
with zeros to a power of two, so that few different shapes are ever run.
"""

from collections.abc import Sequence

import mlx.core as mx

from lora_core.adapters import Site, at_rank, initial
from lora_core.layers import Weights
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
        self.state = {group: self._stack(group, slots, old, given, rank) for group in self._groups(slots)}
        there = [*self.slots, *(slot for slot in slots if slot not in self.slots)]
        new = mx.ones((len(there) - len(self.slots),), dtype=mx.bool_)
        self.alive = _taken(mx.concatenate([self.alive, new]), there, slots)
        self.slots = list(slots)

    def _groups(self, slots: Sequence[Slot]) -> list[Group]:
        groups: dict[object, Group] = {}
        for site in self.sites:
            if any(slot.adapts(site) for slot in slots):
                kind = (members(slots, site), site.key, site.module.shapes())
                groups[kind] = (*groups.get(kind, ()), site)
        return list(groups.values())

    def _stack(
        self, group: Group, slots: list[Slot], old: dict[int, State], given: dict[Slot, dict[int, State]], rank: int
    ) -> State:
        """A group's arrays: those of slots that stay, begin anew or begin with what is given, put in order."""
        slots = slots[: members(slots, group[0])]
        stay = [slot for slot in self.slots if slot in slots]
        known = [slot for slot in slots if slot in given]
        new = [slot for slot in slots if slot not in stay and slot not in given]
        parts = [self._staying(group, stay, old, rank)] if stay else []
        parts += [self._known(group, known, given, rank)] if known else []
        parts += [self._new(group, new, rank)] if new else []
        there = [*stay, *known, *new]
        return tuple(
            tuple(_taken(mx.concatenate(arrays, axis=1), there, slots, axis=1) for arrays in zip(*weights, strict=True))
            for weights in zip(*parts, strict=True)
        )

    def _staying(self, group: Group, stay: list[Slot], old: dict[int, State], rank: int) -> State:
        def rows(site: Site) -> State:
            if site.index not in old:  # none of them adapts it
                return _stacked([self._zeros(site, rank)] * len(stay))
            there = self.slots[: members(self.slots, site)]
            state = (at_rank(weights, rank) for weights in old[site.index])
            return tuple(tuple(_taken(array, there, stay) for array in weights) for weights in state)

        return _stacked([rows(site) for site in group])

    def _known(self, group: Group, known: list[Slot], given: dict[Slot, dict[int, State]], rank: int) -> State:
        def row(slot: Slot, site: Site) -> State:
            state = given[slot].get(site.index)
            return tuple(at_rank(weights, rank) for weights in state) if state else self._zeros(site, rank)

        return _stacked([_stacked([row(slot, site) for slot in known]) for site in group])

    def _new(self, group: Group, new: list[Slot], rank: int) -> State:
        adapters = initial(group, [slot.draw if slot.adapts(group[0]) else None for slot in new], rank, self.dora)
        zeros = tuple(map(mx.zeros_like, adapters))
        return adapters, zeros, zeros

    def _zeros(self, site: Site, rank: int) -> State:
        """One slot's row of a layer that it leaves out."""
        a, b = site.module.shapes()
        pair = mx.zeros((*a[:-1], rank)), mx.zeros((*b[:-2], rank, b[-1]))
        zeros = (*pair, mx.zeros(b[-1:])) if self.dora else pair
        return zeros, zeros, zeros

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


def _at(weights: Weights, index: int) -> Weights:
    return tuple(array[index] for array in weights)


def _stacked(states: list[State]) -> State:
    return tuple(tuple(map(mx.stack, zip(*weights, strict=True))) for weights in zip(*states, strict=True))


def _taken(array: mx.array, there: list[Slot], slots: list[Slot], axis: int = 0) -> mx.array:
    """Of an array that has a row for each slot that is there, the rows of `slots` in their order."""
    if there == slots:
        return array
    return mx.take(array, mx.array([there.index(slot) for slot in slots], dtype=mx.int32), axis)
