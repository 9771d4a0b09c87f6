"""The head's losses and hidden gradients against plain autograd through nn.losses.cross_entropy."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from lora_core import head
from lora_core.head import head_losses
from lora_core.split import Split

WIDTH, VOCABULARY, ROWS = 12, 30, 23


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = [nn.Linear(WIDTH, WIDTH)]

    def __call__(self, tokens: mx.array) -> mx.array:
        hidden = self.embed_tokens(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class Model(nn.Module):
    """A head of one of several kinds over a trunk of one block."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.model = Trunk()
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=kind == "biased")
        if kind == "biased":
            self.lm_head.bias = mx.random.normal((VOCABULARY,), key=mx.random.key(3))

    @property
    def layers(self) -> list[nn.Module]:
        return self.model.layers

    def __call__(self, tokens: mx.array) -> mx.array:
        hidden = self.model(tokens)
        if self.kind == "tied":
            return self.model.embed_tokens.as_linear(hidden)
        logits = self.lm_head(hidden)
        return 3 * mx.tanh(logits / 3) if self.kind == "capped" else logits


KINDS = {"plain": True, "biased": True, "tied": True, "capped": False}  # whether it is one matrix product


def hidden_and_targets(size: float = 1.0) -> tuple[mx.array, mx.array]:
    hidden = size * mx.random.normal((ROWS, WIDTH), key=mx.random.key(1))
    return hidden, mx.random.randint(0, VOCABULARY, (ROWS,), key=mx.random.key(2))


def weighted(losses: mx.array) -> mx.array:
    """A sum in which every position counts differently, so that mixed-up positions show."""
    return (losses * mx.arange(1, ROWS + 1)).sum() / ROWS


def compared(split: Split, size: float = 1.0) -> tuple[float, float]:
    """Largest difference of losses and of hidden gradients."""
    hidden, targets = hidden_and_targets(size)
    ours, without = head_losses(split)

    def plain(values: mx.array) -> mx.array:
        return nn.losses.cross_entropy(split.head(values[None])[0], targets)

    assert mx.allclose(ours(hidden, targets), without(hidden, targets), rtol=1e-6)
    loss = mx.abs(ours(hidden, targets) - plain(hidden)).max().item()
    found, expected = (mx.grad(lambda h, f=f: weighted(f(h)))(hidden) for f in (lambda h: ours(h, targets), plain))
    return loss, mx.abs(found - expected).max().item()


@pytest.mark.parametrize("chunk", [1, 5, 22, 23, 24, 1024])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_equal_autograd(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK", chunk)
    split = Split(Model(kind))
    assert (head._linear_head(split) is not None) == KINDS[kind]
    loss, gradient = compared(split)
    assert loss < 1e-5 and gradient < 1e-5


@pytest.mark.parametrize("kind", ["capped", "biased"])
def test_taking_it_for_another_head_is_noticed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    split = Split(Model(kind))
    plain = nn.Linear(1, 1, bias=False)
    plain.weight = split.model.lm_head.weight
    monkeypatch.setattr(head, "_linear_head", lambda _: plain)
    loss, gradient = compared(split)
    assert loss > 1e-3 and gradient > 1e-3


def test_extreme_logits_stay_finite() -> None:
    split = Split(Model("plain"))
    split.model.lm_head.weight = 10 * mx.random.normal((VOCABULARY, WIDTH), key=mx.random.key(4))
    hidden, targets = hidden_and_targets(1e3)
    assert mx.abs(split.head(hidden[None])).max().item() > 1e4
    losses, gradient = mx.value_and_grad(lambda h: weighted(head_losses(split)[0](h, targets)))(hidden)
    assert np.isfinite(losses.item()) and mx.isfinite(gradient).all().item()
    loss, difference = compared(split, 1e3)
    assert loss < 1e-2 and difference < 1e-2  # of losses of about 1e5


def test_half_precision_keeps_the_hidden_dtype() -> None:
    model = Model("plain")
    model.set_dtype(mx.bfloat16)
    hidden, targets = hidden_and_targets()
    losses, _ = head_losses(Split(model))
    gradient = mx.grad(lambda h: losses(h, targets).sum())(hidden.astype(mx.bfloat16))
    assert losses(hidden.astype(mx.bfloat16), targets).dtype == mx.float32 and gradient.dtype == mx.bfloat16


def test_in_half_precision_loss_and_probabilities_are_those_of_float32() -> None:
    logits = (5 * mx.random.normal((ROWS, VOCABULARY), key=mx.random.key(6))).astype(mx.bfloat16)
    (powers, total, logsumexp), (half, one, same) = head._softmax(logits), head._softmax_of_half(logits)
    assert mx.allclose(logsumexp, same, rtol=1e-6)
    assert half.dtype == mx.bfloat16 and mx.allclose(half / one, powers / total, rtol=2**-8, atol=0)
    assert not mx.allclose(mx.logsumexp(logits, axis=-1, keepdims=True), logsumexp, rtol=1e-6)  # in bfloat16 it is not


def peak(chunks: int) -> int:
    """Bytes that losses and hidden gradients of so many chunks take at most, of which each has 512,000 of logits."""
    head_of = nn.Linear(WIDTH, 2000, bias=False)
    losses = head._with_gradient(head._linear(head_of)[0])
    hidden, targets = mx.random.normal((64 * chunks, WIDTH)), mx.zeros(64 * chunks, mx.int32)
    mx.eval(hidden, targets, head_of.parameters())
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.grad(lambda h: losses(h, targets).sum())(hidden))
    return mx.get_peak_memory() - before


def test_memory_does_not_grow_with_the_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK", 64)
    assert peak(64) < 1.25 * peak(16)
    monkeypatch.setattr(mx, "depends", lambda inputs, _: inputs)
    assert peak(64) > 2 * peak(16)
