"""Dropout for several trials at once: each slot's mask comes from a key of its own at its own shape, so that neighbours
and rank do not move it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import mlx.core as mx


@dataclass(frozen=True)
class Dropout:
    """Of one layer. Kept values are divided by `keep`."""

    keep: mx.array  # [K]
    keys: mx.array  # uint32 [K, 2]
    mask: mx.array | None = None  # bool [K, …]: what is kept; None: drawn where it is needed

    def drawn(self, shape: Sequence[int]) -> "Dropout":
        """With the mask for a slot's values of this shape."""
        return replace(self, mask=_mask(tuple(shape))(self.keys, self.keep))

    def __call__(self, values: mx.array) -> mx.array:
        """values [K, …], some of them zero."""
        mask = self.drawn(values.shape[1:]).mask if self.mask is None else self.mask
        return mx.where(mask, values / _by_slot(self.keep, values.ndim).astype(values.dtype), 0)


@cache
def _mask(shape: tuple[int, ...]) -> Callable[[mx.array, mx.array], mx.array]:
    """Compiled, since on a GPU the half dozen operations that draw a mask take as long as any other. It is nothing to
    be differentiated: under `mx.grad` MLX runs what is compiled operation by operation."""

    def kept(keys: mx.array, keep: mx.array) -> mx.array:
        draws = mx.vmap(lambda key: mx.random.uniform(shape=shape, key=key))(keys)
        return draws < _by_slot(keep, draws.ndim)

    return mx.compile(kept)


def _by_slot(keep: mx.array, dimensions: int) -> mx.array:
    return keep.reshape(-1, *[1] * (dimensions - 1))
