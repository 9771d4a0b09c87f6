"""The language-model head at the positions that count, with its hidden gradient made in the same pass.

A head's loss at a position depends on that position's hidden state alone, so the gradient for unit weight can be
formed while the logits are at hand, and the logits dropped. Each chunk of logits waits (`mx.depends`) for the one
before, so that memory does not grow with their number; MLX may have made room for up to four ahead. For
logits = h·Wᵀ + c and softmax p:

    loss = logsumexp(logits) - logits[target]        d loss / d h = p·W - W[target]
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lora_core.split import Split

CHUNK = 1024  # positions whose logits are alive together
Losses = Callable[[mx.array, mx.array], mx.array]


def head_losses(split: Split) -> tuple[Losses, Losses]:
    """Functions (with gradient, without) of hidden [n, D] and targets int [n] that give losses float32 [n]."""
    module = _linear_head(split)
    chunk, loss = _generic(split) if module is None else _linear(module)
    return _with_gradient(chunk), lambda hidden, targets: _in_chunks(loss, hidden, targets)[0]


def _with_gradient(chunk: Callable[..., Any]) -> Losses:
    @mx.custom_function
    def losses(hidden: mx.array, targets: mx.array) -> Any:
        return tuple(_in_chunks(chunk, hidden, targets))

    @losses.vjp
    def losses_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        unit = outputs[1]
        return (cotangents[0][:, None] * unit).astype(primals[0].dtype), mx.zeros_like(primals[1])

    return lambda hidden, targets: losses(hidden, targets)[0]


def _in_chunks(function: Callable[..., Any], hidden: mx.array, targets: mx.array) -> list[mx.array]:
    """Applies `function` to chunks one after the other and concatenates each of its results."""
    done: list[tuple[mx.array, ...]] = []
    for start in range(0, hidden.shape[0], CHUNK):
        part = hidden[start : start + CHUNK]
        if done:
            part = mx.depends(part, list(done[-1]))
        done.append(function(part, targets[start : start + CHUNK]))
    return [mx.concatenate(parts) if len(done) > 1 else parts[0] for parts in zip(*done, strict=True)]


def _linear(module: nn.Module) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The weight is that of the module when it is asked for: a trial that trains the head has one of its own."""
    softmax = _softmax if module.weight.dtype == mx.float32 else _softmax_of_half

    def parts(hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        logits = hidden @ module.weight.T
        logits = logits + module.bias if "bias" in module else logits
        chosen = mx.take_along_axis(logits, targets[:, None], axis=-1).astype(mx.float32)
        powers, total, logsumexp = softmax(logits)
        return powers, total, (logsumexp - chosen)[:, 0]

    def chunk(hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        powers, total, loss = parts(hidden, targets)
        weight = module.weight
        expected = (powers.astype(weight.dtype) @ weight).astype(mx.float32) / total
        return loss, expected - weight[targets].astype(mx.float32)

    return chunk, lambda hidden, targets: (parts(hidden, targets)[2],)


def _softmax(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Softmax as powers/total, and logsumexp [n, 1] in float32. Each exponential is taken once, for both uses."""
    largest = mx.stop_gradient(logits.max(axis=-1, keepdims=True).astype(mx.float32))
    powers = _powers(logits, largest)
    total = powers.sum(axis=-1, keepdims=True)
    return powers, total, mx.log(total) + largest


def _softmax_of_half(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """The same in MLX's own kernels, which read half precision and compute in float32 in one pass: exponentials cost
    a GPU less than memory does."""
    logsumexp = mx.logsumexp(logits.astype(mx.float32), axis=-1, keepdims=True)
    return mx.softmax(logits, axis=-1, precise=True), mx.ones((1,)), logsumexp


@partial(mx.compile, shapeless=True)
def _powers(logits: mx.array, largest: mx.array) -> mx.array:
    return mx.exp(logits.astype(mx.float32) - largest)


def _generic(split: Split) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """For heads that do more than one matrix product (soft-capped, scaled or quantised logits)."""

    def loss(hidden: mx.array, targets: mx.array) -> mx.array:
        logits = split.head(hidden[None])[0].astype(mx.float32)
        return nn.losses.cross_entropy(logits, targets, reduction="none")

    def total(hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        values = loss(hidden, targets)
        return values.sum(), values

    def chunk(hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        (_, values), gradient = mx.value_and_grad(total)(hidden, targets)
        return values, gradient.astype(mx.float32)

    return chunk, lambda hidden, targets: (loss(hidden, targets),)


def _linear_head(split: Split) -> nn.Module | None:
    """The module with its weight if the head is exactly one dense matrix product, found by trying it."""
    for module in split.model.modules():
        weight = module.get("weight")
        if type(module) not in (nn.Linear, nn.Embedding) or weight.shape[0] < weight.shape[1]:
            continue
        if _is_head(split, weight, module.get("bias")):
            return module
    return None


def _is_head(split: Split, weight: mx.array, bias: mx.array | None) -> bool:
    # Large hidden states, so that a soft cap on the logits cannot hide.
    hidden = 8 * mx.random.normal((1, 4, weight.shape[1]), key=mx.random.key(0)).astype(weight.dtype)
    try:
        found = split.head(hidden)
    except ValueError:
        return False  # another width
    if found.shape[-1] != weight.shape[0]:
        return False
    expected = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    return mx.allclose(found, expected, rtol=1e-4, atol=1e-4).item()
