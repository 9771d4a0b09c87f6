"""Runs a part of an mlx-lm model: the blocks below a boundary, the blocks above it, or the head alone.

Nothing is copied and no model class is patched. A *view* is a shallow copy of the modules on the way to the list
of blocks, with stand-ins in that list that skip, capture or inject hidden states. The list keeps its length, so
models that choose a mask by a block's number still do; what a stand-in makes unnecessary is never evaluated,
since MLX is lazy.
"""

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

# Largest difference of logits, relative to their spread: the same operations in the same order should give none,
# but a backend may choose another kernel for another graph; that moves the last bits of the dtype.
TOLERANCE = {mx.float32: 1e-4, mx.float16: 1e-2, mx.bfloat16: 3e-2}


class _StandIn:
    """Takes a module's place; anything it does not define itself is asked of the module."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Skip(_StandIn):
    def __call__(self, hidden: mx.array, *_: Any, **__: Any) -> mx.array:
        return hidden


class _Inject(_StandIn):
    def __init__(self, module: Any, hidden: mx.array) -> None:
        super().__init__(module)
        self._hidden = hidden

    def __call__(self, *_: Any, **__: Any) -> mx.array:
        return self._hidden


class _Capture(_StandIn):
    hidden: mx.array

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        self.hidden = self._module(*args, **kwargs)
        return self.hidden


class Split:
    """A model that can be run in parts. Tokens are int [n, T], hidden states [n, T, D].

    Raises ValueError if no module of the model holds all blocks, and them alone, in one list.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.blocks: Sequence[nn.Module] = list(model.layers)
        self.names = _names_of(self.blocks, model)
        self.path, self.attribute = _place_of(self.blocks, model)

    def prefix(self, tokens: mx.array, boundary: int) -> mx.array:
        """Hidden states after blocks 0 … boundary-1; `boundary` is at least 1."""
        last = _Capture(self.blocks[boundary - 1])
        skipped = [_Skip(block) for block in self.blocks[boundary:]]
        self._trunk([*self.blocks[: boundary - 1], last, *skipped])(tokens)
        return last.hidden

    def suffix(self, tokens: mx.array, hidden: mx.array | None, boundary: int) -> mx.array:
        """Final normed hidden states from those after block boundary-1 (from the tokens at boundary 0)."""
        blocks = list(self.blocks)
        if boundary > 0:
            skipped = [_Skip(block) for block in blocks[: boundary - 1]]
            blocks[:boundary] = [*skipped, _Inject(blocks[boundary - 1], hidden)]
        return self._trunk(blocks)(tokens)

    def head(self, hidden: mx.array) -> mx.array:
        """Logits [n, T, vocabulary] of final normed hidden states."""
        trunk = _Inject(_follow(self.model, self.path), hidden)
        return _with(self.model, self.path, trunk)(mx.zeros(hidden.shape[:2], dtype=mx.int32))

    def block_name(self, index: int) -> str:
        """The full name of a block, as in the weight files: `model.layers.3`."""
        return self.names[index]

    def _trunk(self, blocks: list[Any]) -> nn.Module:
        view = copy.copy(_follow(self.model, self.path))
        view[self.attribute] = blocks
        return view


def _names_of(blocks: Sequence[nn.Module], model: nn.Module) -> list[str]:
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(block)] for block in blocks]


def _place_of(blocks: Sequence[nn.Module], model: nn.Module) -> tuple[list[str], str]:
    """The path of the module that holds the list of blocks, and the list's name there: `layers`, `h`, …

    Lists are compared by what is in them, since `model.layers` may be made anew at each call.
    """
    for path, module in model.named_modules():
        for name, value in module.items() if path else ():
            if isinstance(value, list) and [id(part) for part in value] == [id(block) for block in blocks]:
                return path.split("."), name
    raise ValueError(f"{type(model).__name__} has no list of blocks that can be split")


def _follow(module: Any, path: list[str]) -> Any:
    for name in path:
        module = module[name]
    return module


def _with(module: nn.Module, path: list[str], replacement: Any) -> nn.Module:
    """A shallow copy of `module` whose submodule at `path` is `replacement`."""
    view = copy.copy(module)
    inner = replacement if len(path) == 1 else _with(module[path[0]], path[1:], replacement)
    view[path[0]] = inner
    return view


class Whole(Split):
    """A model that only runs as a whole: its final hidden states are its logits, its head does nothing."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.blocks = list(model.layers)
        self.names = _names_of(self.blocks, model)

    def suffix(self, tokens: mx.array, hidden: mx.array | None, boundary: int) -> mx.array:
        return self.model(tokens)

    def head(self, hidden: mx.array) -> mx.array:
        return hidden


def choose_split(model: nn.Module) -> tuple[Split, str | None]:
    """The model split in parts if that gives the logits of the whole, else the whole, with a line that says so.

    Checked at the middle block, on random tokens.
    """
    tokens = mx.random.randint(0, 100, (2, 16), key=mx.random.key(0))
    try:
        split = Split(model)
        boundary = max(1, len(split.blocks) // 2)
        parts = split.head(split.suffix(tokens, split.prefix(tokens, boundary), boundary))
        difference = _difference(parts, model(tokens))
    except (AttributeError, TypeError, ValueError) as error:
        return Whole(model), f"The model does not run in parts ({error}): frozen blocks run at every step."
    if difference > TOLERANCE[_dtype(model)]:
        note = f"The model in parts differs from the whole by {difference:.1e}: frozen blocks run at every step."
        return Whole(model), note
    return split, None


def _dtype(model: nn.Module) -> mx.Dtype:
    """The dtype of the hidden states that tokens become."""
    return model(mx.zeros((1, 1), dtype=mx.int32)).dtype


def _difference(found: mx.array, expected: mx.array) -> float:
    found, expected = found.astype(mx.float32), expected.astype(mx.float32)
    return (mx.abs(found - expected).max() / (mx.std(expected) + 1e-12)).item()
