"""Inputs of adapted layers that are made again for the gradient instead of being kept: norms and gated units.

They cost a GPU little to make from what is kept anyway, and with what lies on the way to them they are two fifths of a
block's activations. An array is known by its identity: a model that changed a norm's output in place (`x += …`) could
not be trained so. None of mlx_lm's does.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu

from lora_core.fused import fused, sigmoid


@dataclass(frozen=True)
class Recipe:
    """How an array was made."""

    made: mx.array  # held, so that its id stays its own
    function: Callable[..., mx.array]  # of the sources
    sources: tuple[mx.array, ...]

    def follow(self, after: mx.array) -> mx.array:
        """The array anew, once `after` is there: MLX would else make it early, and keep it."""
        return self.function(*mx.depends(list(self.sources), [after]))


_recipes: dict[int, Recipe] | None = None  # by id of what was made; None: nobody will ask


def note(made: mx.array, function: Callable[..., mx.array], *sources: mx.array) -> mx.array:
    """Tells that `made` is cheap to make again; returns it."""
    if _recipes is not None:
        _recipes[id(made)] = Recipe(made, function, sources)
    return made


def recipe_of(array: mx.array) -> Recipe | None:
    """How to make it again, if that is cheap."""
    return None if _recipes is None else _recipes.get(id(array))


def users_of_swiglu(blocks: Sequence[nn.Module]) -> list[ModuleType]:
    """The Python modules that define parts of the blocks and call mlx_lm's gated unit by its name."""
    parts = {type(part).__module__ for block in blocks for part in block.modules()}
    return [sys.modules[name] for name in parts if getattr(sys.modules[name], "swiglu", None) is swiglu]


@contextmanager
def noting(users: Sequence[ModuleType]) -> Iterator[None]:
    """Inside the `with`, which runs blocks and takes gradients, it is noted how to make things again, gated units of
    the users' too."""
    global _recipes
    _recipes = {}
    for module in users:
        module.swiglu = _noted_swiglu  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in users:
            module.swiglu = swiglu  # type: ignore[attr-defined]
        _recipes = None  # and what it held


def _noted_swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return note(_swiglu(gate, up), _swiglu, gate, up)


@mx.custom_function
def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate)·up, of which MLX would keep three arrays as large as the gate."""
    return fused(_gated, [gate, up], [gate.dtype])[0]


@_swiglu.vjp
def _swiglu_vjp(primals: Any, cotangent: mx.array, _: Any) -> tuple[mx.array, ...]:
    gate, up = mx.depends(list(primals), [cotangent])
    return tuple(fused(_gated_gradients, [gate, up, cotangent], [gate.dtype, up.dtype]))


def _gated(gate: Any, up: Any) -> tuple[Any]:
    return (gate * sigmoid(gate) * up,)


def _gated_gradients(gate: Any, up: Any, above: Any) -> tuple[Any, Any]:
    share = sigmoid(gate)
    return above * up * share * (1 + gate * (1 - share)), above * gate * share
