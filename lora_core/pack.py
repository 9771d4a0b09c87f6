"""The adapters and moments of the slots that train together, stacked along a first axis."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from lora_core.adapters import Site, at_rank, initial
from lora_core.slot import Slot
from lora_core.step import Computation, Pairs, Rows, Traits

# MKL multiplies matrices narrower than this with another kernel, whose last bits differ from those of wider ones.
LEAST_RANK = 16


class Pack:
    """Slots of one depth. Stacks are rebuilt only when a slot comes or goes; ranks are padded to a power of two,
    so that few different shapes are ever compiled."""

    def __init__(self, computation: Computation, sites: list[Site], boundary: int, config: Any) -> None:
        self.computation = computation
        self.sites = sites
        self.boundary = boundary
        lora = config.lora_parameters
        self.drop_input = lora.dropout_on == "input"
        self.base_dtype = lora.compute_dtype == "base"
        self.slots: list[Slot] = []
        self.adapters: Pairs = []
        self.moments: tuple[Pairs, Pairs] = ([], [])
        self.alive = mx.ones((0,), dtype=mx.bool_)  # [K]
        self._constants: dict[tuple[str, ...], dict[str, mx.array]] = {}
        self._compiled: dict[tuple[Traits, str], Callable[..., Any]] = {}

    def add(self, slot: Slot, adapter: Pairs | None = None) -> None:
        """Gives the slot its initial adapters, or those given by site, and zero moments."""
        lora = slot.config.lora_parameters
        pairs = adapter or [initial(site, lora, slot.config.seed, slot.spec.repeat) for site in self.sites]
        zeros = [(mx.zeros_like(a), mx.zeros_like(b)) for a, b in pairs]
        first = not self.slots
        self.slots.append(slot)
        rank = self._rank()

        def extended(stack: Pairs, new: Pairs) -> Pairs:
            fresh = [at_rank(a[None], b[None], rank) for a, b in new]
            return (
                fresh if first else [_joined(at_rank(*old, rank), one) for old, one in zip(stack, fresh, strict=True)]
            )

        moments = (extended(self.moments[0], zeros), extended(self.moments[1], zeros))
        self._replace(extended(self.adapters, pairs), moments, mx.concatenate([self.alive, mx.array([True])]))

    def remove(self, slot: Slot) -> None:
        """Takes the slot out."""
        others = [k for k in range(len(self.slots)) if self.slots[k] is not slot]
        self.slots = [self.slots[k] for k in others]
        index = mx.array(others, dtype=mx.int32)
        rank = self._rank()

        def kept(stack: Pairs) -> Pairs:
            return [at_rank(a[index], b[index], rank) for a, b in stack] if others else []

        self._replace(kept(self.adapters), (kept(self.moments[0]), kept(self.moments[1])), self.alive[index])

    def _replace(self, adapters: Pairs, moments: tuple[Pairs, Pairs], alive: mx.array) -> None:
        self.adapters, self.moments, self.alive = adapters, moments, alive
        self._constants.clear()

    def adapter(self, slot: Slot) -> Pairs:
        """The slot's A and B by site, at its own rank."""
        rank, k = slot.config.lora_parameters.rank, self.slots.index(slot)
        return [at_rank(a[k], b[k], rank) for a, b in self.adapters]

    def step(self, due: Sequence[Slot], rows: Rows) -> mx.array:
        """Starts one optimizer step of the slots in `due`, which are in the pack's order; returns their losses
        [len(due)] without waiting for them."""
        traits = self._traits(due)
        inputs = (*self._subset(due), self._settings(due, traits), *_arrays(rows))
        adapters, moments, losses, alive = self._function(traits, "step")(*inputs)
        self._put_back(due, adapters, moments, alive)
        mx.async_eval(adapters, moments, losses, alive)
        return losses

    def read_alive(self) -> None:
        """Brings each slot's `alive` up to the device's; waits for it."""
        for slot, alive in zip(self.slots, self.alive.tolist(), strict=True):
            slot.alive = alive

    def evaluate(self, due: Sequence[Slot], rows: Rows) -> mx.array:
        """Sum of the losses of each due slot's batch, [len(due)]."""
        adapters, _ = self._subset(due)
        return self._function(self._traits([]), "evaluate")(adapters, self._multiplier(due), *_arrays(rows))

    def _traits(self, due: Sequence[Slot]) -> Traits:
        dropping = any(slot.config.lora_parameters.dropout > 0 for slot in due)
        return Traits(self.boundary, self.drop_input, self.base_dtype, dropping)

    def _function(self, traits: Traits, name: str) -> Callable[..., Any]:
        if (traits, name) not in self._compiled:
            made = self._step_function(traits) if name == "step" else self._evaluate_function(traits)
            self._compiled[traits, name] = mx.compile(made)
        return self._compiled[traits, name]

    def _step_function(self, traits: Traits) -> Callable[..., Any]:
        return lambda adapters, moments, settings, *rows: self.computation.step(
            self.sites, traits, adapters, moments, settings, _rows(rows)
        )

    def _evaluate_function(self, traits: Traits) -> Callable[..., Any]:
        return lambda adapters, multiplier, *rows: self.computation.evaluate(
            self.sites, traits, adapters, multiplier, _rows(rows)
        )

    def _settings(self, due: Sequence[Slot], traits: Traits) -> dict[str, mx.array]:
        moving = np.array([(slot.rate, *slot.correction()) for slot in due], dtype=np.float32)
        settings = {"moving": mx.array(moving.T), "alive": self.alive[self._index(due)], **self._constant(due)}
        if traits.dropping:
            settings["key"] = mx.array(np.stack([self._keys(slot) for slot in due]))
        return settings

    def _constant(self, due: Sequence[Slot]) -> dict[str, mx.array]:
        """What a trial keeps from its first step to its last."""
        names = tuple(slot.spec.name for slot in due)
        if names not in self._constants:
            configs = [slot.config for slot in due]
            values = {
                "decay": [c.optimizer.weight_decay if c.optimizer.name == "adamw" else 0.0 for c in configs],
                "clip": [c.trainer.grad_clip or np.inf for c in configs],
                "keep": [1 - c.lora_parameters.dropout for c in configs],
            }
            constant = {name: mx.array(np.array(value, dtype=np.float32)) for name, value in values.items()}
            self._constants[names] = {**constant, "multiplier": self._multiplier(due)}
        return self._constants[names]

    def _keys(self, slot: Slot) -> np.ndarray:
        """A dropout key per site, uint32 [S, 2], from (seed, repeat, step, layer)."""
        indices = [site.index for site in self.sites]
        sequence = np.random.SeedSequence([slot.config.seed, slot.spec.repeat, slot.step])
        return sequence.generate_state(2 * (max(indices) + 1)).reshape(-1, 2)[indices]

    def _multiplier(self, due: Sequence[Slot]) -> mx.array:
        """[S, K]: zero where a slot's `keys` leave a layer out."""
        rows = [
            [slot.config.lora_parameters.multiplier if wanted(slot.config, site) else 0.0 for slot in due]
            for site in self.sites
        ]
        return mx.array(rows, dtype=mx.float32)

    def _rank(self) -> int:
        largest = max((slot.config.lora_parameters.rank for slot in self.slots), default=1)
        return max(LEAST_RANK, 1 << (largest - 1).bit_length())

    def _index(self, due: Sequence[Slot]) -> mx.array:
        return mx.array([self.slots.index(slot) for slot in due])

    def _subset(self, due: Sequence[Slot]) -> tuple[Pairs, tuple[Pairs, Pairs]]:
        if len(due) == len(self.slots):
            return self.adapters, self.moments
        index = self._index(due)
        adapters, first, second = ([(a[index], b[index]) for a, b in pairs] for pairs in (self.adapters, *self.moments))
        return adapters, (first, second)

    def _put_back(self, due: Sequence[Slot], adapters: Pairs, moments: tuple[Pairs, Pairs], alive: mx.array) -> None:
        if len(due) == len(self.slots):
            self.adapters, self.moments, self.alive = adapters, moments, alive
            return
        index = self._index(due)
        self.alive[index] = alive
        for old, new in zip((self.adapters, *self.moments), (adapters, *moments), strict=True):
            for (old_a, old_b), (new_a, new_b) in zip(old, new, strict=True):
                old_a[index], old_b[index] = new_a, new_b


def _joined(first: tuple[mx.array, mx.array], second: tuple[mx.array, mx.array]) -> tuple[mx.array, mx.array]:
    return mx.concatenate([first[0], second[0]]), mx.concatenate([first[1], second[1]])


def wanted(config: Any, site: Site) -> bool:
    """Whether the trial adapts this layer."""
    keys = config.lora_parameters.keys
    return keys is None or site.key in keys


def _arrays(rows: Rows) -> tuple[mx.array, ...]:
    fixed = (rows.tokens, rows.positions, rows.targets, rows.weights)
    return fixed if rows.hidden is None else (*fixed, rows.hidden)


def _rows(arrays: tuple[mx.array, ...]) -> Rows:
    tokens, positions, targets, weights, *hidden = arrays
    return Rows(tokens, hidden[0] if hidden else None, positions, targets, weights)
