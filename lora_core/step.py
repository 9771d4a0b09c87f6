"""One optimizer step of a pack, as a pure function of arrays whose first axis is the slot.

Nothing is summed across slots except the loss handed to autograd, whose gradient to each slot's own part is one:
a slot that diverges leaves the others' bits alone. Reductions are ordered so that zero padding of the rank does
not move a bit either.
"""

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import mlx.core as mx

from lora_core.adapters import Active, Site, activated
from lora_core.head import Losses
from lora_core.split import Split, StandIn, Whole

BETAS = (0.9, 0.999)  # Adam (Kingma & Ba 2015), with their bias correction
EPSILON = 1e-8
NORM_WIDTH = 256  # ranks are summed in blocks of this many, however wide the pack is

Pair = tuple[mx.array, mx.array]  # A and B
Pairs = list[Pair]  # by site


@dataclass(frozen=True)
class Traits:
    """What a step is made for, beside the shapes of its arrays."""

    groups: tuple[tuple[int, int], ...]  # lowest block to run, and slots that start there; ascending
    drop_input: bool
    base_dtype: bool  # adapter matrix products in the dtype of the base
    dropping: bool  # some slot has dropout
    checkpoint: bool  # activations of adapted blocks are made again in the backward pass


@dataclass
class Rows:
    """One batch a slot. n = K·b rows; P loss positions a slot, those beyond the batch's own with weight 0."""

    tokens: mx.array  # int32 [n₀, T], those of the first group
    hidden: list[mx.array]  # [n, T, D] after the frozen prefix, for each group but one at block 0
    positions: mx.array  # int32 [K, P], into b·T
    targets: mx.array  # int32 [K, P]
    weights: mx.array  # float32 [K, P]: 1 or 0


class Computation:
    """The forward pass, the loss and the update of packs over one model."""

    def __init__(self, split: Split, losses: tuple[Losses, Losses]) -> None:
        self.split = split
        self.splits = not isinstance(split, Whole)
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
        dropping = dropout if traits.dropping else None
        actives = [
            Active(
                a, b, multiplier[i, : len(a)],
                dropping["keep"][: len(a)] if dropping else None,
                dropping["key"][: len(a), i] if dropping else None,
                traits.drop_input, traits.base_dtype,
            )
            for i, (a, b) in enumerate(adapters)
        ]  # fmt: skip
        boundaries, hidden = [boundary for boundary, _ in traits.groups], list(rows.hidden)
        first = hidden.pop(0) if boundaries[0] > 0 else None
        joins = list(zip(boundaries[1:], hidden, strict=True))
        with activated(sites, actives):
            blocks = self._checkpointed(sites, actives) if traits.checkpoint else None
            final = self.split.suffix(rows.tokens, first, boundaries[0], joins, blocks)
        slots = rows.positions.shape[0]
        final = final.reshape(slots, -1, final.shape[-1])
        chosen = mx.take_along_axis(final, rows.positions[:, :, None], axis=1)
        return chosen.reshape(-1, final.shape[-1])

    def _checkpointed(self, sites: list[Site], actives: list[Active]) -> list[Any]:
        """The model's blocks, those with adapters made to forget their activations."""
        blocks = list(self.split.blocks)
        for layer in {site.layer for site in sites}:
            own = [(site, active) for site, active in zip(sites, actives, strict=True) if site.layer == layer]
            blocks[layer] = Checkpointed(blocks[layer], own)
        return blocks


class Checkpointed(StandIn):
    """A block whose activations are made again for its gradient (Chen et al. 2016) instead of kept."""

    def __init__(self, block: Any, adapters: list[tuple[Site, Active]]) -> None:
        super().__init__(block)
        self._sites = [site for site, _ in adapters]
        self._actives = [active for _, active in adapters]

    def __call__(self, hidden: mx.array, *rest: Any, **named: Any) -> mx.array:
        def run(hidden: mx.array, pairs: Pairs) -> mx.array:
            actives = [replace(active, a=a, b=b) for active, (a, b) in zip(self._actives, pairs, strict=True)]
            with activated(self._sites, actives):
                return self._module(hidden, *rest, **named)

        return mx.checkpoint(run)(hidden, [(active.a, active.b) for active in self._actives])


def squared_norm(gradients: Pairs) -> mx.array:
    """Sum of squares of each slot's gradients, float32 [K]."""
    slots = max(len(a) for a, _ in gradients)
    by_rank = mx.zeros((1,))
    for a, b in reversed(gradients):
        more = [(0, slots - len(a)), (0, 0)]  # slots that do not adapt this layer
        by_rank = by_rank + mx.pad(_squares(a, -2) + _squares(b, -1), more)
    rank = by_rank.shape[1]
    filled = mx.pad(by_rank, [(0, 0), (0, -rank % NORM_WIDTH)]).reshape(slots, -1, NORM_WIDTH)
    blocks = filled.sum(axis=-1)
    total = blocks[:, 0]
    for block in range(1, blocks.shape[1]):
        total = total + blocks[:, block]
    return total


def _squares(gradient: mx.array, axis: int) -> mx.array:
    """[K, …] → [K, r]: the sum of squares along `axis`, and over the experts where there are any."""
    sums = mx.square(gradient).sum(axis=axis)
    return sums if sums.ndim == 2 else sums.sum(axis=1)


def update(
    adapters: Pairs, gradients: Pairs, moments: tuple[Pairs, Pairs], slots: dict, factor: mx.array, alive: mx.array
) -> tuple[Pairs, tuple[Pairs, Pairs]]:
    """AdamW, every quantity by slot; slots not alive stay as they are."""
    by_slot = [factor, *slots["moving"], slots["decay"], alive]

    @cache  # many layers have the same slots
    def settings(slots: int, dimensions: int) -> list[mx.array]:
        return [values[:slots].reshape(slots, *[1] * (dimensions - 1)) for values in by_slot]

    def one(p: mx.array, *state: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        return adamw(p, *state, *settings(len(p), p.ndim))

    done = [
        [one(p, g, m, v) for p, g, m, v in zip(*parts, strict=True)]
        for parts in zip(adapters, gradients, *moments, strict=True)
    ]
    new = [[(a[i], b[i]) for a, b in done] for i in range(3)]
    return new[0], (new[1], new[2])


@partial(mx.compile, shapeless=True)
def adamw(
    p: mx.array, g: mx.array, m: mx.array, v: mx.array,
    factor: mx.array, rate: mx.array, first: mx.array, second: mx.array, decay: mx.array, alive: mx.array,
) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) as one kernel: parameters, their gradient and moments [K, …]; by
    slot the factor of clipping, learning rate, 1/(1-βᵗ) of both moments, weight decay, and whether to change."""
    g = g * factor
    m_new = BETAS[0] * m + (1 - BETAS[0]) * g
    v_new = BETAS[1] * v + (1 - BETAS[1]) * g * g
    p_new = p * (1 - rate * decay) - rate * (m_new * first) / (mx.sqrt(v_new * second) + EPSILON)
    return mx.where(alive, p_new, p), mx.where(alive, m_new, m), mx.where(alive, v_new, v)
