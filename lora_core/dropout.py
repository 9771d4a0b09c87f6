"""Dropout for several trials at once: each slot's mask comes from a key of its own at its own shape, so that neighbours
and rank do not move it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import mlx.core as mx

from lora_core import backend
from lora_core.fused import where


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
        mask, keep = self.parts(values.shape)
        return kept_of(values, mask, keep.astype(values.dtype))

    def parts(self, shape: Sequence[int]) -> tuple[mx.array, mx.array]:
        """The mask for values [K, …] of this shape, and the share to keep, [K, 1, …]."""
        drawn = self if self.mask is not None else self.drawn(shape[1:])
        assert drawn.mask is not None
        return drawn.mask, _by_slot(self.keep, len(shape))


def kept_of(values: Any, mask: Any, keep: Any) -> Any:
    """What is left of values, arrays or terms of a kernel; None as a mask: all."""
    return values if mask is None else where(mask, values / keep, 0)


@cache
def _mask(shape: tuple[int, ...]) -> Callable[[mx.array, mx.array], mx.array]:
    """What draws masks [K, …] of a slot's shape from keys [K, 2] and shares to keep [K].

    Compiled, since on a GPU the half dozen operations that draw a mask take as long as any other. It is nothing to
    be differentiated: under `mx.grad` MLX runs what is compiled operation by operation."""

    def kept(keys: mx.array, keep: mx.array) -> mx.array:
        draws = mx.vmap(lambda key: mx.random.uniform(shape=shape, key=key))(keys)
        return draws < _by_slot(keep, draws.ndim)

    if backend.is_cuda() and math.prod(shape) % 2 == 0:
        return _on_cuda(shape)
    return mx.compile(kept)


def _on_cuda(shape: tuple[int, ...]) -> Callable[[mx.array, mx.array], mx.array]:
    """What draws the same masks in one kernel. MLX's own has neighbouring threads write for different keys, byte by
    byte, which made a step of 32 slots with dropout last three times as long as one without."""
    half, threads = math.prod(shape) // 2, (256, 1, 1)
    places, given = -(-half // threads[0]) * threads[0], mx.array([half], dtype=mx.uint32)

    def kept(keys: mx.array, keep: mx.array) -> mx.array:
        (mask,) = _kernel()(
            inputs=[keys, keep, given], template=[], grid=(places, len(keys), 1), threadgroup=threads,
            output_shapes=[(len(keys), *shape)], output_dtypes=[mx.bool_],
        )  # fmt: skip
        return mask

    return kept


@cache
def _kernel() -> Callable[..., list[mx.array]]:
    """Threefry 2x32 of 20 rounds (Salmon et al. 2011) as MLX counts with it: number i of a key's first half and number
    i of its second half come from the counter (i, i + half); divided by 2³² they are uniform in [0, 1)."""
    source = """
        uint32_t place = blockIdx.x * blockDim.x + threadIdx.x;
        uint32_t slot = blockIdx.y;
        if (place < half[0]) {
            uint2 drawn = threefry(keys[2 * slot], keys[2 * slot + 1], place, place + half[0]);
            size_t first = size_t(slot) * 2 * half[0] + place;
            mask[first] = uniform(drawn.x) < keep[slot];
            mask[first + half[0]] = uniform(drawn.y) < keep[slot];
        }
    """
    header = """
        __device__ uint2 threefry(uint32_t key0, uint32_t key1, uint32_t x, uint32_t y) {
            const int turns[8] = {13, 15, 26, 6, 17, 29, 16, 24};
            const uint32_t keys[3] = {key0, key1, key0 ^ key1 ^ 0x1BD11BDAu};
            x += keys[0];
            y += keys[1];
            #pragma unroll
            for (int round = 0; round < 20; ++round) {
                int turn = turns[round % 8];
                x += y;
                y = ((y << turn) | (y >> (32 - turn))) ^ x;
                if (round % 4 == 3) {
                    int block = round / 4 + 1;
                    x += keys[block % 3];
                    y += keys[(block + 1) % 3] + block;
                }
            }
            return make_uint2(x, y);
        }
        __device__ float uniform(uint32_t bits) {
            return fminf(float(bits) * 0x1p-32f, 0x1.fffffep-1f);
        }
    """
    names = ["keys", "keep", "half"]
    return mx.fast.cuda_kernel(
        name="dropout_mask", input_names=names, output_names=["mask"], source=source, header=header
    )


def _by_slot(keep: mx.array, dimensions: int) -> mx.array:
    return keep.reshape(-1, *[1] * (dimensions - 1))
