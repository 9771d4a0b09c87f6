"""LoRA on a frozen layer, for several trials at once (design: ΔW = s·B·A, Hu et al. 2021, section 4.1), and DoRA,
which learns the length of each row of W + ΔW beside it (Liu et al. 2024, equation 5).

The input's rows are those of K slots, one after the other. A is [K, in, r], B is [K, r, out]; ranks are padded
with zeros, which get zero gradients and stay zero. Where several layers of experts share one module, the rows
come sorted by expert, so that slots cannot be told apart: such a model is trained with K = 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lora_core import backend
from lora_core.dropout import Dropout, kept_of
from lora_core.fused import fused
from lora_core.remade import Recipe, recipe_of

Weights = tuple[mx.array, ...]  # what a layer of a trial learns: A, B, and with DoRA m, the length of each row


@dataclass
class Active:
    """What one layer needs while a pack runs through it."""

    a: mx.array  # [K, in, r]
    b: mx.array  # [K, r, out], multiplied by s already
    dropout: Dropout | None = None  # None: no slot drops anything
    drop_input: bool = False  # dropout on the input of ΔW, not on ΔW·x
    gain: mx.array | None = None  # [K, out], with DoRA: m by the length of each row of W + ΔW
    down: "Down | None" = None  # x·A of this layer and of the others that read the same x; None: there are no others

    def __call__(self, x: mx.array, y: mx.array, bias: mx.array | None = None) -> mx.array:
        """y + ΔW·x for x [K·b, T, in] and y = W·x + bias [K·b, T, out]; with DoRA gain·(W + ΔW)·x + bias."""
        inner = (self.down or Down([self]))(x, self)
        if self.gain is not None:
            return _scaled(self, bias)(inner, self.b, self.gain, y)
        return _added(self)(inner, self.b, y)

    def dropped_input(self, x: mx.array) -> mx.array:
        """The input of ΔW, dropped where dropout is on it."""
        return self.dropout(x) if self.dropout and self.drop_input else x

    def kept(self, shape: tuple[int, ...]) -> tuple[mx.array | None, mx.array | None]:
        """What dropout on ΔW·x, of this shape, keeps, and its share; None: all."""
        return self.dropout.parts(shape) if self.dropout and not self.drop_input else (None, None)

    @property
    def learned(self) -> Weights:
        """A, s·B and the gain."""
        return (self.a, self.b) if self.gain is None else (self.a, self.b, self.gain)


class Down:
    """x·A of layers that read the same x: one product for all of them, made for the first that asks."""

    def __init__(self, actives: Sequence[Active]) -> None:
        self.actives = actives
        self._x: mx.array | None = None
        self._made: Sequence[mx.array] = ()

    def __call__(self, x: mx.array, active: Active) -> mx.array:
        """x·A [K, b·T, r] of one of the layers."""
        if self._x is not x:
            a = [each.a for each in self.actives]
            down = _down(self.actives, recipe_of(x))
            self._x, self._made = x, down(x, mx.concatenate(a, axis=-1) if len(a) > 1 else a[0])
        return next(made for each, made in zip(self.actives, self._made, strict=True) if each is active)


class StackedLora(nn.Module):
    """A frozen linear layer with room for the adapters of K slots; without `active` it is the layer alone."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.active: Any = None  # an Active, or what looks on: called with x and y, gives the new y
        self.reads: int | None = None  # the same number in layers that read the same input
        self._squares: mx.array | None = None  # of the lengths of W's rows, once asked for

    def __call__(self, x: mx.array) -> mx.array:
        """x [K·b, T, in] → [K·b, T, out]."""
        y = self.linear(x)
        return y if self.active is None else self.active(x, y, self.linear.get("bias"))

    def lengths(self, a: mx.array | None = None, b: mx.array | None = None) -> mx.array:
        """Of the rows of W, float32 [out]; given A [K, in, r] and s·B [K, r, out], of W + ΔW by slot, [K, out].

        ‖w + Σᵣ bᵣ·aᵣ‖² = ‖w‖² + 2 Σᵣ bᵣ·(w·aᵣ) + Σᵣₛ bᵣ·(aᵣ·aₛ)·bₛ, so that no slot's matrix is ever made.
        """
        if self._squares is None:  # mlx takes a name with an underscore for no parameter
            self._squares = mx.square(dense(self.linear).astype(mx.float32)).sum(axis=1)
        if a is None or b is None:
            return mx.sqrt(self._squares)
        a, b = a.astype(mx.float32), b.astype(mx.float32)
        transposed = a.swapaxes(1, 2)
        changed = self._squares + (b * (2 * without_bias(self.linear, transposed) + (transposed @ a) @ b)).sum(axis=1)
        return mx.sqrt(mx.maximum(changed, 0))

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of A and B at rank 1, in this module's own layout."""
        outputs, inputs = self.linear.weight.shape
        if isinstance(self.linear, nn.QuantizedLinear):
            inputs = inputs * 32 // self.linear.bits
        return (inputs, 1), (1, outputs)


def dense(linear: nn.Module) -> mx.array:
    """The weight [out, in] of a layer, quantised or not."""
    if not isinstance(linear, nn.QuantizedLinear):
        return linear.weight
    return mx.dequantize(
        linear.weight, linear.scales, linear.get("biases"),
        group_size=linear.group_size, bits=linear.bits, mode=linear.mode,
    )  # fmt: skip


def without_bias(linear: nn.Module, x: mx.array) -> mx.array:
    """x·Wᵀ."""
    if not isinstance(linear, nn.QuantizedLinear):
        return x @ linear.weight.T
    return mx.quantized_matmul(
        x, linear.weight, linear.scales, linear.get("biases"), transpose=True,
        group_size=linear.group_size, bits=linear.bits, mode=linear.mode,
    )  # fmt: skip


class ExpertLora(StackedLora):
    """The same on a layer of E experts: A is [1, E, in, r], B is [1, E, r, out]."""

    def __call__(  # type: ignore[override]  # called in place of a layer of experts
        self, x: mx.array, indices: mx.array, sorted_indices: bool = False
    ) -> mx.array:
        y = self.linear(x, indices, sorted_indices=sorted_indices)
        active: Active | None = self.active
        if active is None:
            return y

        def through(z: mx.array, weight: mx.array) -> mx.array:
            return mx.gather_mm(z, weight[0], rhs_indices=indices, sorted_indices=sorted_indices)

        rows = active.dropped_input(x.astype(active.a.dtype)[None])[0]
        delta = through(through(rows, active.a), active.b)
        return (y + kept_of(delta[None], *active.kept((1, *delta.shape)))[0]).astype(y.dtype)

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        experts, outputs, inputs = (
            self.linear.num_experts, self.linear.output_dims, self.linear.input_dims,
        )  # fmt: skip
        return (experts, inputs, 1), (experts, 1, outputs)


def gain_of(magnitude: mx.array, lengths: mx.array) -> mx.array:
    """What DoRA multiplies each row of W + ΔW by: m by the row's length. A slot that leaves the layer out has zeros
    for m, and leaves its rows as they are; a row of zeros has no direction that could be learned, and stays one."""
    share = magnitude / mx.where(lengths == 0, 1, lengths)  # not only chosen away: the gradient to 0/0 would be NaN
    return mx.where((magnitude == 0) & (lengths > 0), 1, share)


def _down(actives: Sequence[Active], recipe: Recipe | None) -> Callable[[mx.array, mx.array], Sequence[mx.array]]:
    """x·A by layer and slot, for x [K·b, T, in] and the A of all layers side by side, with a gradient that needs
    little memory.

    Autograd would keep a copy of x in the adapters' dtype. MLX would also leave the gradients of all A and B to the
    end of the backward pass, and keep for them what the layers above have long done with: so the gradient to x,
    without which no layer below can go on, waits for them. An x that is cheap to make again is not kept.
    """
    first = actives[0]

    def rows_of(x: mx.array, a: mx.array) -> mx.array:
        return first.dropped_input(x.astype(a.dtype).reshape(len(a), -1, x.shape[-1]))

    @mx.custom_function
    def down(x: mx.array, a: mx.array) -> Any:
        return tuple(mx.split(rows_of(x, a) @ a, len(actives), axis=-1))

    @down.vjp
    def down_vjp(primals: Any, cotangents: Any, _: Any) -> Any:
        x, a = primals
        inner = mx.concatenate(cotangents, axis=-1) if len(actives) > 1 else cotangents[0]
        x = recipe.follow(inner) if recipe else x
        grad_a, grad_x = rows_of(x, a).swapaxes(1, 2) @ inner, inner @ a.swapaxes(1, 2)
        grad_x = first.dropped_input(grad_x).astype(x.dtype).reshape(x.shape)
        return mx.depends([grad_x], [grad_a])[0], grad_a

    return down


def _added(active: Active) -> Callable[..., mx.array]:
    """y + ΔW·x by slot, from x·A, s·B and y = W·x; as for A, what goes further down waits for the gradient of B."""

    @mx.custom_function
    def added(inner: mx.array, b: mx.array, y: mx.array) -> mx.array:
        plain = _by_slot(y, b)
        mask, keep = active.kept(plain.shape)
        if mask is not None:
            changed = fused(_sum_of_kept, [plain, inner @ b, mask, keep], [y.dtype])[0]
        elif inner.dtype == y.dtype and not backend.is_cpu():
            changed = mx.addmm(plain, inner, b)
        else:
            changed = plain + (inner @ b).astype(y.dtype)
        return changed.reshape(y.shape)

    @added.vjp
    def added_vjp(primals: Any, cotangent: mx.array, _: Any) -> tuple[mx.array, ...]:
        inner, b, _ = primals
        above = _by_slot(cotangent, b)
        mask, keep = active.kept(above.shape)
        above = above.astype(inner.dtype) if mask is None else fused(_kept, [above, mask, keep], [inner.dtype])[0]
        grad_b = inner.swapaxes(1, 2) @ above
        return mx.depends([above @ b.swapaxes(1, 2)], [grad_b])[0], grad_b, cotangent

    return added


def _scaled(active: Active, bias: mx.array | None) -> Callable[..., mx.array]:
    """gain·(W + ΔW)·x + bias by slot, from x·A, s·B, the gain and y = W·x + bias. What is added to y is exactly zero
    where B is and the gain is 1. ΔW·x is made again for the gradient."""

    def others(gain: mx.array, shape: tuple[int, ...]) -> list[mx.array | None]:
        return [gain[:, None], None if bias is None else bias[None, None], *active.kept(shape)]

    @mx.custom_function
    def scaled(inner: mx.array, b: mx.array, gain: mx.array, y: mx.array) -> mx.array:
        whole = _by_slot(y, b)
        return fused(_scaled_sum, [whole, inner @ b, *others(gain, whole.shape)], [y.dtype])[0].reshape(y.shape)

    @scaled.vjp
    def scaled_vjp(primals: Any, cotangent: mx.array, _: Any) -> tuple[mx.array, ...]:
        inner, b, gain, y = primals
        whole, above = _by_slot(y, b), _by_slot(cotangent, b)
        above, grad_y, by_row = fused(
            _scaled_gradients, [whole, inner @ b, above, *others(gain, whole.shape)], [inner.dtype, y.dtype, gain.dtype]
        )
        grad_gain, grad_b = by_row.sum(axis=1), inner.swapaxes(1, 2) @ above
        grad_inner, grad_y = mx.depends([above @ b.swapaxes(1, 2), grad_y.reshape(y.shape)], [grad_b, grad_gain])
        return grad_inner, grad_b, grad_gain, grad_y

    return scaled


def _by_slot(rows: mx.array, b: mx.array) -> mx.array:
    """[K·b, T, out] → [K, b·T, out]."""
    return rows.reshape(len(b), -1, rows.shape[-1])


def _kept(values: Any, mask: Any, keep: Any) -> tuple[Any]:
    return (kept_of(values, mask, keep),)


def _sum_of_kept(y: Any, delta: Any, mask: Any, keep: Any) -> tuple[Any]:
    return (y + kept_of(delta, mask, keep),)


def _scaled_sum(y: Any, delta: Any, gain: Any, bias: Any, mask: Any, keep: Any) -> tuple[Any]:
    return (y + (gain * kept_of(delta, mask, keep) + (gain - 1) * _without(bias, y)),)


def _scaled_gradients(
    y: Any, delta: Any, above: Any, gain: Any, bias: Any, mask: Any, keep: Any
) -> tuple[Any, Any, Any]:
    """To ΔW·x, to y, and to the gain by row."""
    scaled = above * gain
    by_row = above * (kept_of(delta, mask, keep) + _without(bias, y))
    return kept_of(scaled, mask, keep), scaled, by_row


def _without(bias: Any, y: Any) -> Any:
    return y if bias is None else y - bias
