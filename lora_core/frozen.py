"""RMSNorm of a model whose own weights nobody trains.

MLX makes the gradients of a norm's input and weight in one operation. The weight's is a sum over all rows, which on a
GPU takes longer than the rest; here it is not made.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lora_core import remade


class FrozenNorm(nn.RMSNorm):
    """Takes the class's place in a norm that is there already, so that names and weights stay what they are."""

    def __call__(self, x: mx.array) -> mx.array:
        norm = _norm(self.eps)
        return remade.note(norm(x, self.weight), norm, x, self.weight)


def freeze_norms(blocks: Sequence[nn.Module]) -> None:
    """Makes every RMSNorm of the blocks one whose weight has no gradient."""
    for block in blocks:
        for module in block.modules():
            if type(module) is nn.RMSNorm:
                module.__class__ = FrozenNorm


@contextmanager
def thawed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the `with` the weights of those that are frozen norms have gradients."""
    norms = [module for module in modules if type(module) is FrozenNorm]
    for norm in norms:
        norm.__class__ = nn.RMSNorm
    try:
        yield
    finally:
        freeze_norms(norms)


@cache
def _norm(eps: float) -> Callable[[mx.array, mx.array], mx.array]:
    @mx.custom_function
    def norm(x: mx.array, weight: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, weight, eps)

    @norm.vjp
    def norm_vjp(primals: Any, cotangent: mx.array, _: Any) -> tuple[mx.array, mx.array]:
        x, weight = primals
        _, (gradient,) = mx.vjp(lambda x: mx.fast.rms_norm(x, None, eps), [x], [cotangent * weight])
        return gradient, mx.zeros_like(weight)

    return norm
