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

from lora_core import backend

# Largest difference of logits, relative to their spread: the same operations in the same order should give none,
# but a backend may choose another kernel for another graph; that moves the last bits of the dtype.
TOLERANCE = {mx.float32: 1e-4, mx.float16: 1e-2, mx.bfloat16: 3e-2}


class StandIn:
    """Takes a module's place; anything it does not define itself is asked of the module."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Skip(StandIn):
    def __call__(self, hidden: mx.array, *_: Any, **__: Any) -> mx.array:
        return hidden


class _Inject(StandIn):
    def __init__(self, module: Any, hidden: mx.array) -> None:
        super().__init__(module)
        self._hidden = hidden

    def __call__(self, *_: Any, **__: Any) -> mx.array:
        return self._hidden


class _Join(StandIn):
    """Appends rows that have been through this block already."""

    def __init__(self, module: Any, rows: mx.array) -> None:
        super().__init__(module)
        self._rows = rows

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        return mx.concatenate([self._module(*args, **kwargs), self._rows])


class _Capture(StandIn):
    hidden: mx.array

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        self.hidden = self._module(*args, **kwargs)
        return self.hidden


class Split:
    """A model that can be run in parts. Tokens are int [n, T], hidden states [n, T, D].

    Raises ValueError if no module of the model holds all blocks, and them alone, in one list.
    """

    joins = True  # whether rows may join at a higher boundary than others started from

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.blocks: Sequence[nn.Module] = list(model.layers)
        self.names = _names_of(self.blocks, model)
        self.dtype = dtype_of(model)
        self.path, self.attribute = _place_of(self.blocks, model)

    def prefix(self, tokens: mx.array, boundary: int, start: int = 0, hidden: mx.array | None = None) -> mx.array:
        """Hidden states after blocks 0 … boundary-1; `boundary` is at least 1.

        With a `start` below it they are made from `hidden`, those after block start-1.
        """
        blocks = self._from(start, hidden, self.blocks)
        last = _Capture(blocks[boundary - 1])
        skipped = [_Skip(block) for block in blocks[boundary:]]
        self._trunk([*blocks[: boundary - 1], last, *skipped])(tokens)
        return last.hidden

    def suffix(
        self,
        tokens: mx.array,
        hidden: mx.array | None,
        boundary: int,
        joins: Sequence[tuple[int, mx.array]] = (),
        blocks: Sequence[Any] | None = None,
    ) -> mx.array:
        """Final normed hidden states from those after block boundary-1 (from the tokens at boundary 0).

        Each of `joins` brings a higher boundary, ascending, and the hidden states of further rows after the block
        below it: those rows come after the others and run through the blocks above alone. `blocks` may stand in
        for the model's own.
        """
        run = self._from(boundary, hidden, blocks or self.blocks)
        for joint, rows in joins:
            run[joint - 1] = _Join(run[joint - 1], rows)
        return self._trunk(run)(tokens)

    @staticmethod
    def _from(start: int, hidden: mx.array | None, blocks: Sequence[Any]) -> list[Any]:
        """The blocks, those below `start` left out and `hidden` put in their place."""
        if start == 0:
            return list(blocks)
        skipped = [_Skip(block) for block in blocks[: start - 1]]
        return [*skipped, _Inject(blocks[start - 1], hidden), *blocks[start:]]

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

    joins = False

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.blocks = list(model.layers)
        self.names = _names_of(self.blocks, model)
        self.dtype = dtype_of(model)

    def suffix(self, tokens: mx.array, *_: Any, **__: Any) -> mx.array:
        return self.model(tokens)

    def head(self, hidden: mx.array) -> mx.array:
        return hidden


def choose_split(model: nn.Module) -> tuple[Split, str | None]:
    """The model split in parts if that gives the logits of the whole, else the whole, with a line that says so.

    Checked at the middle block, on random tokens; then again with half of the rows joining there.
    """
    tokens = mx.random.randint(0, 100, (2, 16), key=mx.random.key(0))
    try:
        split = Split(model)
        boundary = max(1, len(split.blocks) // 2)
        whole, middle = model(tokens), split.prefix(tokens, boundary)
        difference = _difference(split.head(split.suffix(tokens, middle, boundary)), whole)
    except (AttributeError, TypeError, ValueError) as error:
        return Whole(model), f"The model does not run in parts ({error}): frozen blocks run at every step."
    if difference > _tolerance(split.dtype):
        note = f"The model in parts differs from the whole by {difference:.1e}: frozen blocks run at every step."
        return Whole(model), note
    split.joins = _rows_can_join(split, tokens, middle, boundary, whole)
    return split, None if split.joins else "Trials of different depth run one depth at a time: rows cannot join midway."


def _rows_can_join(split: Split, tokens: mx.array, middle: mx.array, boundary: int, whole: mx.array) -> bool:
    """Whether logits then differ no more than they may, or than they do where rows run one at a time: another number
    of rows may take other kernels too, and a model with large activations makes much of that."""
    try:
        joined = split.suffix(tokens[:1], None, 0, [(boundary, middle[1:])])
        alone = mx.concatenate([split.model(tokens[:1]), split.model(tokens[1:])])
        most = max(_tolerance(split.dtype), 2 * _difference(alone, whole))
        return _difference(split.head(joined), whole) <= most
    except (AttributeError, TypeError, ValueError):
        return False


def dtype_of(model: nn.Module) -> mx.Dtype:
    """The dtype of the hidden states that tokens become."""
    return model(mx.zeros((1, 1), dtype=mx.int32)).dtype


def _tolerance(dtype: mx.Dtype) -> float:
    """GPUs may round the factors of float32 products to TF32, whose mantissa is that of float16."""
    return TOLERANCE[mx.float16 if dtype == mx.float32 and not backend.is_cpu() else dtype]


def _difference(found: mx.array, expected: mx.array) -> float:
    found, expected = found.astype(mx.float32), expected.astype(mx.float32)
    return (mx.abs(found - expected).max() / (mx.std(expected) + 1e-12)).item()
