"""Norms without a gradient of their own weight: the same values, names and gradients of the input."""

import mlx.core as mx
import mlx.nn as nn

from lora_core.frozen import FrozenNorm, freeze_norms

WIDTH = 24


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH, eps=1e-3)
        self.norm.weight = mx.random.normal((WIDTH,), key=mx.random.key(0))
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.other = nn.LayerNorm(WIDTH)


class Special(nn.RMSNorm):
    def __call__(self, x: mx.array) -> mx.array:
        return x


def test_values_and_gradients_of_the_input_stay() -> None:
    block, x = Block(), mx.random.normal((5, WIDTH), key=mx.random.key(1))

    def loss(x: mx.array) -> mx.array:
        return (block.norm(x) * mx.arange(5.0)[:, None]).sum()

    before, gradient = mx.value_and_grad(loss)(x)
    freeze_norms([block])
    assert type(block.norm) is FrozenNorm
    after, found = mx.value_and_grad(loss)(x)
    assert mx.array_equal(before, after)
    assert mx.allclose(found, gradient, rtol=1e-4, atol=1e-5)
    block.norm.weight = 2 * block.norm.weight
    assert not mx.allclose(mx.grad(loss)(x), gradient, rtol=1e-4, atol=1e-5)


def test_names_stay_and_nothing_else_is_touched() -> None:
    block = Block()
    block.special = Special(WIDTH)
    names = [name for name, _ in block.named_modules()]
    freeze_norms([block])
    assert [name for name, _ in block.named_modules()] == names
    assert type(block.other) is nn.LayerNorm and type(block.special) is Special
