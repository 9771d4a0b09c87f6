"""One optimizer step of a pack, as a pure function of arrays whose first axis is the slot.

Nothing is summed across slots except the loss handed to autograd, whose gradient to each slot's own part is one:
a slot that diverges leaves the others' bits alone. Reductions are ordered so that zero padding of the rank does
not move a bit either.
"""

from dataclasses import dataclass

import mlx.core as mx

from lora_core.adapters import Active, Site, activated
from lora_core.head import Losses
from lora_core.split import Split

BETAS = (0.9, 0.999)  # Adam (Kingma & Ba 2015), with their bias correction
EPSILON = 1e-8
NORM_WIDTH = 256  # ranks are summed in blocks of this many, however wide the pack is

Pairs = list[tuple[mx.array, mx.array]]  # (A, B) by site


@dataclass(frozen=True)
class Traits:
    """What all slots of a pack share, and what a compiled step is made for."""

    boundary: int  # lowest adapted block
    drop_input: bool
    base_dtype: bool  # adapter matrix products in the dtype of the base
    dropping: bool  # some slot has dropout


@dataclass
class Rows:
    """One batch a slot. n = K·b rows; P loss positions a slot, those beyond the batch's own with weight 0."""

    tokens: mx.array  # int32 [n, T]
    hidden: mx.array | None  # [n, T, D] after the frozen prefix; None at boundary 0
    positions: mx.array  # int32 [K, P], into b·T
    targets: mx.array  # int32 [K, P]
    weights: mx.array  # float32 [K, P]: 1 or 0


class Computation:
    """The forward pass, the loss and the update of packs over one model."""

    def __init__(self, split: Split, losses: tuple[Losses, Losses]) -> None:
        self.split = split
        self.losses_with_gradient, self.losses = losses

    def evaluate(self, sites: list[Site], traits: Traits, adapters: Pairs, multiplier: mx.array, rows: Rows):
        """Sum of the losses of each slot's batch, float32 [K]. Nothing is dropped."""
        hidden = self._hidden(sites, traits, adapters, multiplier, None, rows)
        losses = self.losses(hidden, rows.targets.reshape(-1))
        return (losses.reshape(rows.targets.shape) * rows.weights).sum(axis=1)

    def step(
        self, sites: list[Site], traits: Traits, adapters: Pairs, moments: tuple[Pairs, Pairs], slots: dict, rows: Rows
    ) -> tuple[Pairs, tuple[Pairs, Pairs], mx.array, mx.array]:
        """One AdamW step of every slot.

        slots: `multiplier` [S, K] by site; `keep`, `decay`, `clip`, `alive` [K]; `moving` [3, K], the learning rate
        and 1/(1-βᵗ) of both moments; with dropout, `key` uint32 [K, S, 2].
        Returns adapters, moments, the mean loss of each slot's tokens [K], and `alive` [K]: false from the first
        loss or gradient that is not finite, and such a slot keeps the adapters it had.
        """

        def objective(adapters: Pairs) -> tuple[mx.array, mx.array]:
            hidden = self._hidden(sites, traits, adapters, slots["multiplier"], slots, rows)
            losses = self.losses_with_gradient(hidden, rows.targets.reshape(-1))
            counted = mx.maximum(rows.weights.sum(axis=1, keepdims=True), 1)
            mean = (losses.reshape(rows.targets.shape) * (rows.weights / counted)).sum(axis=1)
            return mean.sum(), mean

        (_, mean), gradients = mx.value_and_grad(objective)(adapters)
        norm = mx.sqrt(squared_norm(gradients))
        alive = slots["alive"] & mx.isfinite(mean) & mx.isfinite(norm)
        factor = mx.minimum(1.0, slots["clip"] / (norm + 1e-6))
        adapters, moments = update(adapters, gradients, moments, slots, factor, alive)
        return adapters, moments, mean, alive

    def _hidden(
        self, sites: list[Site], traits: Traits, adapters: Pairs, multiplier: mx.array, dropout: dict | None, rows: Rows
    ) -> mx.array:
        """Final hidden states at the loss positions, [K·P, D]."""
        dtype = (rows.hidden.dtype if rows.hidden is not None else None) if traits.base_dtype else mx.float32
        actives = [
            Active(
                a, b, multiplier[i],
                dropout["keep"] if dropout and traits.dropping else None,
                dropout["key"][:, i] if dropout and traits.dropping else None,
                traits.drop_input, dtype or a.dtype,
            )
            for i, (a, b) in enumerate(adapters)
        ]  # fmt: skip
        with activated(sites, actives):
            final = self.split.suffix(rows.tokens, rows.hidden, traits.boundary)
        slots = rows.positions.shape[0]
        final = final.reshape(slots, -1, final.shape[-1])
        chosen = mx.take_along_axis(final, rows.positions[:, :, None], axis=1)
        return chosen.reshape(-1, final.shape[-1])


def squared_norm(gradients: Pairs) -> mx.array:
    """Sum of squares of each slot's gradients, float32 [K]."""
    by_rank = mx.zeros((1,))
    for a, b in reversed(gradients):
        by_rank = by_rank + _by_rank(a, -1) + _by_rank(b, -2)
    slots, rank = by_rank.shape
    filled = mx.pad(by_rank, [(0, 0), (0, -rank % NORM_WIDTH)]).reshape(slots, -1, NORM_WIDTH)
    blocks = filled.sum(axis=-1)
    total = blocks[:, 0]
    for block in range(1, blocks.shape[1]):
        total = total + blocks[:, block]
    return total


def _by_rank(gradient: mx.array, axis: int) -> mx.array:
    """[K, …] → [K, r], the sum of squares over everything but slot and rank."""
    squares = mx.moveaxis(gradient * gradient, axis, 1)
    return squares.reshape(*squares.shape[:2], -1).sum(axis=-1)


def update(
    adapters: Pairs, gradients: Pairs, moments: tuple[Pairs, Pairs], slots: dict, factor: mx.array, alive: mx.array
) -> tuple[Pairs, tuple[Pairs, Pairs]]:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2), every quantity by slot; slots not alive stay as they are."""

    def one(p: mx.array, g: mx.array, m: mx.array, v: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        def by_slot(values: mx.array) -> mx.array:
            return values.reshape(-1, *[1] * (p.ndim - 1))

        g = g * by_slot(factor)
        m_new = BETAS[0] * m + (1 - BETAS[0]) * g
        v_new = BETAS[1] * v + (1 - BETAS[1]) * g * g
        rate, first, second = (by_slot(values) for values in slots["moving"])
        decay = by_slot(slots["decay"])
        p_new = p * (1 - rate * decay) - rate * (m_new * first) / (mx.sqrt(v_new * second) + EPSILON)
        on = by_slot(alive)
        return mx.where(on, p_new, p), mx.where(on, m_new, m), mx.where(on, v_new, v)

    done = [
        [one(p, g, m, v) for p, g, m, v in zip(*parts, strict=True)]
        for parts in zip(adapters, gradients, *moments, strict=True)
    ]
    new = [[(a[i], b[i]) for a, b in done] for i in range(3)]
    return new[0], (new[1], new[2])
