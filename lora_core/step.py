"""One optimizer step of a pack, as a pure function of arrays by group of layers and by slot.

Nothing is summed across slots except the loss handed to autograd, whose gradient to each slot's own part is one:
a slot that diverges leaves the others' bits alone. Reductions are ordered so that zero padding of the rank does
not move a bit either.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast
from weakref import WeakMethod

import mlx.core as mx

from lora_core import backend
from lora_core.adamw import squared_norm, update
from lora_core.adapters import Site, activated
from lora_core.dropout import Dropout
from lora_core.head import Losses
from lora_core.layers import Active, ExpertLora, Weights, gain_of
from lora_core.remade import noting, users_of_swiglu
from lora_core.replayed import replayed
from lora_core.slot import Slot
from lora_core.split import Split, StandIn, Whole
from lora_core.stacks import Group, State


@dataclass(frozen=True)
class Traits:
    """What a step is made for, beside the shapes of its arrays."""

    starts: tuple[tuple[int, int], ...]  # lowest block to run, and slots that start there; ascending
    drop_input: bool = False
    base_dtype: bool = False  # adapter matrix products in the dtype of the base
    dropping: bool = False  # some slot has dropout
    checkpoint: bool = False  # activations of adapted blocks are made again in the backward pass


@dataclass
class Rows:
    """One batch a slot. n = K·b rows; P loss positions a slot, those beyond the batch's own with weight 0."""

    tokens: mx.array  # int32 [n₀, T], those of the slots that start lowest
    hidden: list[mx.array]  # [n, T, D] after the frozen prefix, by start but for one at block 0
    positions: mx.array  # int32 [K, P], into b·T
    targets: mx.array  # int32 [K, P]
    weights: mx.array  # float32 [K, P]: 1 or 0


class Computation:
    """The forward pass, the loss and the update of packs over one model."""

    def __init__(self, split: Split, losses: tuple[Losses, Losses]) -> None:
        self.split = split
        self.splits = not isinstance(split, Whole)
        self.losses_with_gradient, self.losses = losses
        step = WeakMethod(self._step)  # else the two would keep each other, and the model, until Python looks for such
        self._replayed = replayed(lambda *given: cast(Any, step())(*given))
        # A GPU makes again what is cheap; a CPU rather keeps it.
        self._remaking = nullcontext if backend.is_cpu() else partial(noting, users_of_swiglu(split.blocks))

    def boundary(self, slot: Slot) -> int:
        """The lowest block that the slot's rows must run through at each step."""
        return slot.bottom if self.splits else 0

    def evaluate(
        self, groups: Sequence[Group], traits: Traits, adapters: list[Weights], multiplier: list[mx.array], rows: Rows
    ) -> mx.array:
        """Sum of the losses of each slot's batch, float32 [K]. Nothing is dropped."""
        ready = _by_site([self._ready(weights, s, traits) for weights, s in zip(adapters, multiplier, strict=True)])
        sites = _sites(groups)
        hidden = self.hidden(sites, traits, ready, _lengths(sites, ready), None, rows)
        losses = self.losses(hidden, rows.targets.reshape(-1))
        return (losses.reshape(rows.targets.shape) * rows.weights).sum(axis=1)

    def step(
        self, groups: Sequence[Group], traits: Traits, state: list[State], slots: dict, batches: Sequence[Rows]
    ) -> tuple[list[State], mx.array, mx.array]:
        """One AdamW step of every slot, on the mean loss over all tokens of one or more batches.

        slots: `multiplier` [m, 1, …] by group; `keep`, `decay`, `ratio`, `clip`, `alive` [K]; `moving` [3, K], the
        learning rate and 1/(1-βᵗ) of both moments; with dropout, `keys` uint32 [S, K, 2] by batch.
        Returns the new state, the mean loss of each slot's tokens [K], and `alive` [K]: false from the first loss or
        gradient that is not finite, and such a slot keeps the adapters it had.
        """
        arrays = state, slots, [vars(rows) for rows in batches]
        if len(batches) > 1:  # which are waited for one by one
            return self._step((groups, traits), *arrays)
        return self._replayed((tuple(groups), traits), *arrays)

    def _step(
        self, made_for: tuple[Sequence[Group], Traits], state: list[State], slots: dict, batches: list[dict[str, Any]]
    ) -> tuple[list[State], mx.array, mx.array]:
        """The same with rows as dictionaries."""
        groups, traits = made_for
        parts = [Rows(**rows) for rows in batches]

        def objective(weights: list[Weights], rows: Rows, dropouts: list[Dropout] | None) -> tuple[mx.array, mx.array]:
            hidden = self.hidden(sites, traits, weights, lengths, dropouts, rows)
            losses = self.losses_with_gradient(hidden, rows.targets.reshape(-1))
            mean = (losses.reshape(rows.targets.shape) * (rows.weights / tokens)).sum(axis=1)
            return mean.sum(), mean

        tokens = counted(parts)
        stacks = [self._ready(adapter, s, traits) for (adapter, *_), s in zip(state, slots["multiplier"], strict=True)]
        sites, ready = _sites(groups), _by_site(stacks)
        lengths = _lengths(sites, ready)
        mean, gradients = mx.array(0.0), list[Weights]()
        for part, rows in enumerate(parts):
            dropouts = None
            if traits.dropping:
                dropouts = _dropouts(sites, traits, ready, slots["keep"], slots["keys"][part], rows)
            with nullcontext() if traits.checkpoint else self._remaking():
                (_, share), by_site = mx.value_and_grad(objective)(ready, rows, dropouts)
            mean = mean + share
            gradients = added(gradients, _by_group(by_site, groups))
            if len(parts) > 1:
                mx.eval(mean, gradients)  # the activations of one batch are gone before there are others
        norm = mx.sqrt(squared_norm(groups, gradients, slots["multiplier"], len(mean)))
        alive = slots["alive"] & mx.isfinite(mean) & mx.isfinite(norm)
        factor = mx.minimum(1.0, slots["clip"] / (norm + 1e-6))
        return update(state, gradients, slots, factor, alive, slots["multiplier"]), mean, alive

    def _ready(self, adapter: Weights, multiplier: mx.array, traits: Traits) -> Weights:
        """A, s·B and DoRA's m for the layers. Scaling B rather than the product spares a pass over all rows."""
        a, b, *others = adapter[0], adapter[1] * multiplier, *adapter[2:]
        return (
            (a.astype(self.split.dtype), b.astype(self.split.dtype), *others) if traits.base_dtype else (a, b, *others)
        )

    def hidden(
        self, sites: list[Site], traits: Traits, weights: list[Weights], lengths: list[mx.array] | None,
        dropouts: list[Dropout] | None, rows: Rows,
    ) -> mx.array:  # fmt: skip
        """Final hidden states at the loss positions, [K·P, D]."""
        actives = [
            Active(
                a, b, dropouts[i] if dropouts else None, traits.drop_input,
                gain_of(magnitude[0], lengths[i]) if lengths else None,
            )
            for i, (a, b, *magnitude) in enumerate(weights)
        ]  # fmt: skip
        starts, hidden = [start for start, _ in traits.starts], list(rows.hidden)
        first = hidden.pop(0) if starts[0] > 0 else None
        joins = list(zip(starts[1:], hidden, strict=True))
        with activated(sites, actives):
            blocks = self._checkpointed(sites, actives) if traits.checkpoint else None
            final = self.split.suffix(rows.tokens, first, starts[0], joins, blocks)
        slots = rows.positions.shape[0]
        final = final.reshape(slots, -1, final.shape[-1])
        chosen = mx.take_along_axis(final, rows.positions[:, :, None], axis=1)
        return chosen.reshape(-1, final.shape[-1])

    def _checkpointed(self, sites: list[Site], actives: list[Active]) -> list[Any]:
        """The model's blocks, those with adapters made to forget their activations."""
        blocks = list(self.split.blocks)
        for layer in {site.layer for site in sites}:
            own = [(site, active) for site, active in zip(sites, actives, strict=True) if site.layer == layer]
            blocks[layer] = Checkpointed(blocks[layer], own, self._remaking)
        return blocks


class Checkpointed(StandIn):
    """A block whose activations are made again for its gradient (Chen et al. 2016) instead of kept."""

    def __init__(
        self, block: Any, adapters: list[tuple[Site, Active]], remaking: Callable[[], AbstractContextManager[None]]
    ) -> None:
        super().__init__(block)
        self._remaking = remaking
        self._sites = [site for site, _ in adapters]
        self._actives = [active for _, active in adapters]

    def __call__(self, hidden: mx.array, *rest: Any, **named: Any) -> mx.array:
        def plain(hidden: mx.array, *arrays: mx.array) -> mx.array:
            given = iter(arrays)
            names = ("a", "b", "gain")
            actives = [
                replace(active, **{name: next(given) for name, _ in zip(names, active.learned, strict=False)})
                for active in self._actives
            ]
            with activated(self._sites, actives):
                return self._module(hidden, *rest, **named)

        run = mx.custom_function(plain)

        @run.vjp
        def run_vjp(primals: Any, cotangent: Any, _: Any) -> Any:
            # Not before its gradient is asked for: mx.checkpoint lets MLX do it as early as it likes.
            with self._remaking():
                return tuple(mx.vjp(plain, mx.depends(list(primals), [cotangent]), [cotangent])[1])

        return run(hidden, *[part for active in self._actives for part in active.learned])


def counted(batches: Sequence[Rows]) -> mx.array:
    """The tokens of each slot that count in the loss, [K, 1], of all batches of a step; at least 1."""
    return mx.maximum(sum((rows.weights.sum(axis=1, keepdims=True) for rows in batches), mx.array(0.0)), 1)


def added(before: list[Weights], new: list[Weights]) -> list[Weights]:
    """The sum of gradients of several batches, in float32; there are none before the first."""
    if not before:
        return new
    pairs = (zip(*weights, strict=True) for weights in zip(before, new, strict=True))
    return [tuple(a.astype(mx.float32) + b for a, b in weights) for weights in pairs]


def _sites(groups: Sequence[Group]) -> list[Site]:
    return [site for group in groups for site in group]


def _by_site(stacks: list[Weights]) -> list[Weights]:
    return [weights for stack in stacks for weights in zip(*map(_layers, stack), strict=True)]


def _lengths(sites: list[Site], ready: list[Weights]) -> list[mx.array] | None:
    """With DoRA those of each site's rows, to which no gradient goes (Liu et al. 2024, section 4.3)."""
    if len(ready[0]) == 2:
        return None
    return [site.module.lengths(a, b) for site, (a, b, _) in zip(sites, ready, strict=True)]


def _dropouts(
    sites: list[Site], traits: Traits, weights: list[Weights], keep: mx.array, keys: mx.array, rows: Rows
) -> list[Dropout]:
    """By site. Masks are drawn before a gradient is taken, unless activations are made again: then they are, too."""
    n, length = rows.tokens.shape
    inputs = n // traits.starts[0][1] * length  # a slot's
    dropouts = []
    for site, (a, *_), key in zip(sites, weights, _layers(keys), strict=True):
        dropout = Dropout(keep[: len(a)], key[: len(a)])
        if not traits.checkpoint and not isinstance(site.module, ExpertLora):
            (features, _), (_, outputs) = site.module.shapes()
            dropout = dropout.drawn((inputs, features if traits.drop_input else outputs))
        dropouts.append(dropout)
    return dropouts


def _layers(stack: mx.array) -> list[mx.array]:
    """The layers of [L, …], without a copy: indexing would make one of each."""
    return [part.squeeze(0) for part in mx.split(stack, len(stack))]


def _by_group(gradients: list[Weights], groups: Sequence[Group]) -> list[Weights]:
    """Gradients to A, s·B and m, stacked, from those by site."""
    remaining = iter(gradients)
    return [tuple(map(mx.stack, zip(*[next(remaining) for _ in group], strict=True))) for group in groups]
