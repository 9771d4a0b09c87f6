"""The update of stacked adapters: each slot's norm, and AdamW for all of them at once.

Gradients and state are by group: A [L, m, in, r], B [L, m, r, out], DoRA's lengths [L, m, out], for its L layers and m
slots. Every quantity is by slot.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from lora_core import backend
from lora_core.fused import fused, root, where
from lora_core.layers import Weights
from lora_core.schedule import BETAS
from lora_core.stacks import Group, State

EPSILON = 1e-8
NORM_WIDTH = 256  # ranks are summed in blocks of this many, however wide the pack is


def squared_norm(groups: Sequence[Group], gradients: list[Weights], multiplier: list[mx.array], slots: int) -> mx.array:
    """Sum of squares of each slot's gradients to A, B and m, float32 [K], from those to A, s·B and m; layer by layer
    from the top, whatever the groups are."""
    sums = [_squares_by_rank(s, *weights) for s, weights in zip(multiplier, gradients, strict=True)]
    # Slots that do not adapt a layer come last, and get zeros: adding them moves no bit.
    every = mx.concatenate([mx.pad(s, [(0, 0), (0, slots - s.shape[1]), (0, 0)]) for s in sums])
    numbers = [-site.index for group in groups for site in group]
    by_rank = every[mx.array(np.argsort(numbers))].sum(axis=0)
    rank = by_rank.shape[1]
    filled = mx.pad(by_rank, [(0, 0), (0, -rank % NORM_WIDTH)]).reshape(slots, -1, NORM_WIDTH)
    blocks = filled.sum(axis=-1)
    total = blocks[:, 0]
    for block in range(1, blocks.shape[1]):
        total = total + blocks[:, block]
    return total


def _squares_by_rank(s: mx.array, a: mx.array, b: mx.array, magnitude: mx.array | None = None) -> mx.array:
    """[L, K, r]: the sum of squares of a group's gradients; what has no rank counts in the first place."""
    sums = _squares(a, -2) + mx.square(s.reshape(-1, 1)) * _squares(b, -1)
    if magnitude is None:
        return sums
    first = mx.square(magnitude).sum(axis=-1, keepdims=True)
    return sums + mx.pad(first, [(0, 0), (0, 0), (0, sums.shape[-1] - 1)])


def _squares(gradient: mx.array, axis: int) -> mx.array:
    """[L, K, …] → [L, K, r]: the sum of squares along `axis`, and over the experts where there are any."""
    sums = mx.square(gradient.astype(mx.float32)).sum(axis=axis)
    return sums if sums.ndim == 3 else sums.sum(axis=2)


def update(
    state: list[State], gradients: list[Weights], slots: dict, factor: mx.array, alive: mx.array,
    multiplier: list[mx.array] | None = None,
) -> list[State]:  # fmt: skip
    """AdamW, every quantity by slot; slots not alive stay as they are. With `multiplier` gradients are those to A, s·B
    and m."""
    rate, *corrections = slots["moving"]
    rates = rate, rate * slots["ratio"], rate  # of A, of B (Hayou et al. 2024, LoRA+) and of DoRA's lengths

    @cache  # many groups have the same slots
    def settings(side: int, members: int, dimensions: int) -> list[mx.array]:
        by_slot = factor, rates[side], *corrections, slots["decay"], alive
        return [values[:members].reshape(members, *[1] * dimensions) for values in by_slot]

    def one(number: int, side: int, g: mx.array, *state: mx.array) -> tuple[mx.array, ...]:
        scale, *others = settings(side, g.shape[1], g.ndim - 2)
        if side == 1 and multiplier:
            scale = scale * multiplier[number]
        return adamw(*state, g, scale, *others)

    new: list[State] = []
    for number, (stacks, weights) in enumerate(zip(state, gradients, strict=True)):
        # One group after the other, so that what is made on the way to one is gone before the next.
        ready = mx.depends(list(weights), [array for part in new[-1] for array in part]) if new else weights
        changed = [one(number, side, *arrays) for side, arrays in enumerate(zip(ready, *stacks, strict=True))]
        new.append(tuple(zip(*changed, strict=True)))
    return new


def adamw(*arrays: mx.array) -> tuple[mx.array, ...]:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2): of parameters, moments and gradient [L, m, …], and by slot,
    [m, 1, …], the factor of the gradient, learning rate, 1/(1-βᵗ) of both moments, weight decay, and whether to change.
    """
    return tuple(fused(_adamw, arrays, [mx.float32] * 3)) if backend.is_cuda() else _compiled_adamw(*arrays)


def _adamw(
    p: Any, m: Any, v: Any, g: Any, factor: Any, rate: Any, first: Any, second: Any, decay: Any, alive: Any
) -> tuple[Any, Any, Any]:
    g = g * factor
    m_new = m * BETAS[0] + g * (1 - BETAS[0])
    v_new = v * BETAS[1] + g * (1 - BETAS[1]) * g
    p_new = p * (1 - rate * decay) - rate * (m_new * first) / (root(v_new * second) + EPSILON)
    return where(alive, p_new, p), where(alive, m_new, m), where(alive, v_new, v)


_compiled_adamw = mx.compile(_adamw, shapeless=True)
