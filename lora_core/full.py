"""`train_type: full`: weights of the model itself are trained, one trial a pass, over the base that all trials share.

A trial's weights are float32 arrays of its own. They take the place of the base's, in the base's dtype, while its rows
run through the model, and no longer: between two passes the base is itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from lora_core.adamw import update
from lora_core.adapter_files import load_tensors
from lora_core.adapter_folder import Stored
from lora_core.frozen import thawed
from lora_core.head import Losses
from lora_core.layers import StackedLora, Weights
from lora_core.pack import settings_of
from lora_core.slot import Slot
from lora_core.split import Split
from lora_core.stacks import State
from lora_core.step import Computation, Rows, Traits, added, counted


@dataclass(frozen=True)
class Weight:
    """One array of the model: `module[attribute]`, and its name in the weight files."""

    name: str
    module: nn.Module
    attribute: str

    @property
    def array(self) -> mx.array:
        return self.module[self.attribute]


def trained_weights(split: Split, bottom: int, everything: bool) -> list[Weight]:
    """Those of the blocks from `bottom` up, or, with `everything`, also embeddings, final norm and head."""
    inside = tuple(f"{split.block_name(layer)}." for layer in range(bottom, len(split.blocks)))
    wrapped = {f"{path}.linear": path for path, m in split.model.named_modules() if isinstance(m, StackedLora)}
    found: dict[tuple[int, str], Weight] = {}
    for path, module in split.model.named_modules():
        for attribute, value in module.items():
            counts = isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating)
            if counts and not attribute.startswith("_") and (everything or f"{path}.".startswith(inside)):
                name = f"{wrapped.get(path, path)}.{attribute}"
                found.setdefault((id(module), attribute), Weight(name, module, attribute))
    return list(found.values())


def load_weights(stored: Stored, weights: Sequence[Weight], base: str | None) -> dict[int, Weights]:
    """What was learned, by place in `weights`. Raises UserError as `load_adapter` does."""
    tensors = load_tensors(stored, {weight.name: tuple(weight.array.shape) for weight in weights}, base)
    return {place: (mx.array(tensors[weight.name]),) for place, weight in enumerate(weights)}


@contextmanager
def carrying(weights: Sequence[Weight], arrays: Sequence[mx.array]) -> Iterator[None]:
    """The model has the given arrays inside the `with`, in its own dtype, and its own again after it."""
    own = [weight.array for weight in weights]
    try:
        for weight, before, array in zip(weights, own, arrays, strict=True):
            weight.module[weight.attribute] = array.astype(before.dtype)
        with thawed(weight.module for weight in weights):
            yield
    finally:
        for weight, before in zip(weights, own, strict=True):
            weight.module[weight.attribute] = before


class FullPack:
    """A pack of one slot, which trains `weights`; to the engine it is what `Pack` is. `head`: the head is trained too.

    State is kept by place in `weights`, each array as [1, 1, …]: one layer and one slot of a stack."""

    def __init__(self, computation: Computation, weights: Sequence[Weight], head: bool) -> None:
        self.computation = computation
        self.weights = weights
        self.losses = computation.losses if head else computation.losses_with_gradient
        self.slots: list[Slot] = []
        self._state: list[State] = []
        self._alive = mx.ones((1,), dtype=mx.bool_)

    def add(self, slot: Slot, state: dict[int, State] | None = None) -> None:
        """Gives the slot the base's weights and zero moments, or what is given by place."""
        self.slots = [slot]
        given = state or {place: self._first(weight) for place, weight in enumerate(self.weights)}
        self._state = [tuple(_one(part) for part in given[place]) for place in range(len(self.weights))]

    @staticmethod
    def _first(weight: Weight) -> State:
        array = weight.array.astype(mx.float32)
        return (array,), (mx.zeros_like(array),), (mx.zeros_like(array),)

    def remove(self, slot: Slot) -> None:
        """Takes the slot out, and forgets what it learned."""
        self.slots, self._state = [], []

    def state(self, slot: Slot) -> dict[int, State]:
        """Weights and moments by place."""
        return {
            place: tuple(tuple(array.squeeze((0, 1)) for array in part) for part in state)
            for place, state in enumerate(self._state)
        }

    def adapter(self, slot: Slot) -> dict[int, Weights]:
        """What the slot has learned, by place."""
        return {place: weights for place, (weights, *_) in self.state(slot).items()}

    def step(self, due: Sequence[Slot], batches: Sequence[Rows]) -> mx.array:
        """Starts one AdamW step on one or more batches; returns the loss [1] without waiting for it."""

        def objective(arrays: list[mx.array], rows: Rows) -> mx.array:
            losses = self._losses(arrays, due[0], rows, self.losses)
            return (losses * (rows.weights / tokens)).sum()

        tokens, arrays = counted(batches), [stack.squeeze((0, 1)) for ((stack,), *_) in self._state]
        mean, gradients = mx.array(0.0), list[Weights]()
        for rows in batches:
            share, new = mx.value_and_grad(objective)(arrays, rows)
            mean, gradients = mean + share, added(gradients, [_one((g,)) for g in new])
            if len(batches) > 1:
                mx.eval(mean, gradients)  # the activations of one batch are gone before there are others
        settings = settings_of(due)
        norm = mx.sqrt(sum((mx.square(gradient).sum() for (gradient,) in gradients), mx.array(0.0)))
        self._alive = self._alive & mx.isfinite(mean) & mx.isfinite(norm)
        factor = mx.minimum(1.0, settings["clip"] / (norm + 1e-6))
        self._state = update(self._state, gradients, settings, factor, self._alive)
        mx.async_eval(mean, self._state, self._alive)
        return mean.reshape(1)

    def evaluate(self, due: Sequence[Slot], rows: Rows) -> mx.array:
        """Sum of the losses of the batch, [1]."""
        arrays = [stack.squeeze((0, 1)) for ((stack,), *_) in self._state]
        return (self._losses(arrays, due[0], rows, self.computation.losses) * rows.weights).sum(axis=1)

    def _losses(self, arrays: list[mx.array], slot: Slot, rows: Rows, head: Losses) -> mx.array:
        """Of every position, [1, P]."""
        traits = Traits(((self.computation.boundary(slot), 1),))
        with carrying(self.weights, arrays):
            hidden = self.computation.hidden([], traits, [], None, None, rows)
            return head(hidden, rows.targets.reshape(-1)).reshape(rows.targets.shape)

    def read_alive(self) -> None:
        """Brings the slot's `alive` up to the device's; waits for it."""
        for slot in self.slots:
            slot.alive = self._alive.item()


def _one(part: Weights) -> Weights:
    return tuple(array[None, None] for array in part)
