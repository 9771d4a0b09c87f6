"""Slots that train together: what they are, what each of them is to do in a step, and the step itself."""

from collections.abc import Sequence
from itertools import groupby

import mlx.core as mx
import numpy as np

from lora_core.adapters import Site
from lora_core.config import TrainConfig
from lora_core.layers import Weights
from lora_core.slot import Slot
from lora_core.stacks import Group, Stacks, State, members
from lora_core.step import Computation, Rows, Traits


class Pack:
    """Slots in the order of their lowest adapted block. They come and go at once; their arrays follow before they are
    next used, for all changes together."""

    def __init__(self, computation: Computation, sites: Sequence[Site], config: TrainConfig) -> None:
        self.computation = computation
        lora = config.lora_parameters
        self.drop_input = lora.dropout_on == "input"
        self.base_dtype = lora.compute_dtype == "base"
        self.checkpoint = config.trainer.grad_checkpoint
        self.slots: list[Slot] = []
        self._stacks = Stacks(sites, config.train_type == "dora")
        self._given: dict[Slot, dict[int, State]] = {}  # to start from, of slots not stacked yet
        self._constants: dict[tuple[Slot, ...], dict[str, list[mx.array]]] = {}

    def add(self, slot: Slot, state: dict[int, State] | None = None) -> None:
        """Gives the slot its initial adapters and zero moments, or what is given by site.index."""
        self.slots = sorted([*self.slots, slot], key=lambda other: other.bottom)
        if state is not None:
            self._given[slot] = state

    def remove(self, slot: Slot) -> None:
        """Takes the slot out."""
        self.slots = [other for other in self.slots if other is not slot]

    def stacks(self) -> Stacks:
        """The arrays of the slots that are there now."""
        if self._stacks.slots != self.slots:
            self._stacks.restack(self.slots, self._given)
            self._given.clear()
            self._constants.clear()  # they are by group, and groups change with the slots
        return self._stacks

    def state(self, slot: Slot) -> dict[int, State]:
        """The slot's adapters and moments, at its own rank, by site.index, of the layers it adapts."""
        return self.stacks().of(slot)

    def adapter(self, slot: Slot) -> dict[int, Weights]:
        """What the slot has learned."""
        return {index: adapter for index, (adapter, *_) in self.stacks().of(slot, 1).items()}

    def step(self, due: Sequence[Slot], rows: Sequence[Rows]) -> mx.array:
        """Starts one optimizer step of the slots in `due`, which are in the pack's order, on the rows of one or more
        batches; returns their losses [len(due)] without waiting for them."""
        stacks = self.stacks()
        losses, state = self._stepped(stacks, due, rows)
        stacks.put_back(due, *state)
        del state
        # Nothing else holds the old state now: the new one can take over its memory.
        mx.async_eval(losses, stacks.state, stacks.alive)
        return losses

    def _stepped(
        self, stacks: Stacks, due: Sequence[Slot], rows: Sequence[Rows]
    ) -> tuple[mx.array, tuple[dict[Group, State], mx.array]]:
        state, traits = stacks.subset(due), self._traits(due)
        settings = self._settings(due, list(state), traits, stacks.alive[stacks.index(due)])
        new, losses, alive = self.computation.step(list(state), traits, list(state.values()), settings, rows)
        return losses, (dict(zip(state, new, strict=True)), alive)

    def read_alive(self) -> None:
        """Brings each slot's `alive` up to the device's; waits for it."""
        stacks = self.stacks()
        for slot, alive in zip(stacks.slots, stacks.alive.tolist(), strict=True):
            slot.alive = alive

    def evaluate(self, due: Sequence[Slot], rows: Rows) -> mx.array:
        """Sum of the losses of each due slot's batch, [len(due)]."""
        state = self.stacks().subset(due)
        adapters = [adapter for adapter, *_ in state.values()]
        multiplier = self._constant(due, list(state))["multiplier"]
        return self.computation.evaluate(list(state), self._traits(due, training=False), adapters, multiplier, rows)

    def _traits(self, due: Sequence[Slot], training: bool = True) -> Traits:
        groups = tuple((boundary, len(list(slots))) for boundary, slots in groupby(due, key=self.computation.boundary))
        dropping = training and any(slot.config.lora_parameters.dropout > 0 for slot in due)
        return Traits(groups, self.drop_input, self.base_dtype, dropping, training and self.checkpoint)

    def _settings(self, due: Sequence[Slot], groups: list[Group], traits: Traits, alive: mx.array) -> dict:
        settings = {"moving": _moving(due), "alive": alive, **self._constant(due, groups)}
        if traits.dropping:
            sites = [site for group in groups for site in group]
            parts = range(due[0].per_step)
            settings["keys"] = [
                mx.array(np.stack([self._keys(slot, sites, part) for slot in due], axis=1)) for part in parts
            ]
        return settings

    def _constant(self, due: Sequence[Slot], groups: list[Group]) -> dict:
        """What a trial keeps from its first step to its last."""
        if tuple(due) not in self._constants:
            multiplier = [_multipliers(due, group) for group in groups]
            self._constants[tuple(due)] = {**_constants(due), "multiplier": multiplier}
        return self._constants[tuple(due)]

    def _keys(self, slot: Slot, sites: Sequence[Site], part: int) -> np.ndarray:
        """A dropout key per site, uint32 [S, 2], from (seed, repeat, place of the batch in the order, layer)."""
        indices, place = [site.index for site in sites], slot.step * slot.per_step + part
        sequence = np.random.SeedSequence([slot.config.seed, slot.spec.repeat, place])
        return sequence.generate_state(2 * (max(indices) + 1)).reshape(-1, 2)[indices]


def settings_of(due: Sequence[Slot]) -> dict[str, mx.array]:
    """What the update of the slots needs, whatever they train."""
    return {"moving": _moving(due), **_constants(due)}


def _moving(due: Sequence[Slot]) -> mx.array:
    """[3, K]: the learning rate and 1/(1-βᵗ) of both moments."""
    return mx.array(np.array([(slot.rate, *slot.correction()) for slot in due], dtype=np.float32).T)


def _constants(due: Sequence[Slot]) -> dict[str, mx.array]:
    """[K] each."""
    configs = [slot.config for slot in due]
    values = {
        "decay": [c.optimizer.weight_decay if c.optimizer.name == "adamw" else 0.0 for c in configs],
        "ratio": [c.optimizer.lora_plus_ratio for c in configs],
        "clip": [c.trainer.grad_clip or np.inf for c in configs],
        "keep": [1 - c.lora_parameters.dropout for c in configs],
    }
    return {name: mx.array(np.array(value, dtype=np.float32)) for name, value in values.items()}


def _multipliers(due: Sequence[Slot], group: Group) -> mx.array:
    """[m, 1, …], ready to multiply a group's B by: zero where a slot's `keys` leave the layers out."""
    slots = due[: members(due, group[0])]
    values = [slot.config.lora_parameters.multiplier if slot.adapts(group[0]) else 0.0 for slot in slots]
    dimensions = len(group[0].module.shapes()[1])
    return mx.array(np.array(values, dtype=np.float32).reshape(len(slots), *[1] * dimensions))
