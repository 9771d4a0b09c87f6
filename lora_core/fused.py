"""Elementwise formulas that an NVIDIA card computes in one kernel, in float32.

`mx.compile` makes one kernel of several operations too, but not under `mx.grad`, where MLX runs what is compiled
operation by operation; and there a small model's step takes as long as it has operations.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import mlx.core as mx

from lora_core import backend

THREADS = 256  # of a block
EACH = 8  # numbers that a thread reads and writes in one go, where rows are made of so many
C_TYPES = {mx.float32: "float", mx.float16: "__half", mx.bfloat16: "__nv_bfloat16"}

Formula = Callable[..., Any]  # of arrays, or of terms; written with +, -, *, /, and the functions below


@dataclass(frozen=True)
class Term:
    """A number in a kernel: a C expression of type float."""

    c: str

    def __add__(self, other: Term | float) -> Term:
        return _infix(self, "+", other)

    def __radd__(self, other: float) -> Term:
        return _infix(other, "+", self)

    def __sub__(self, other: Term | float) -> Term:
        return _infix(self, "-", other)

    def __rsub__(self, other: float) -> Term:
        return _infix(other, "-", self)

    def __mul__(self, other: Term | float) -> Term:
        return _infix(self, "*", other)

    def __truediv__(self, other: Term | float) -> Term:
        return _infix(self, "/", other)


def _infix(left: Term | float, operator: str, right: Term | float) -> Term:
    return Term(f"({_c(left)} {operator} {_c(right)})")


def _c(value: Term | float) -> str:
    return value.c if isinstance(value, Term) else f"{float(value)}f"


def sigmoid(x: Any) -> Any:
    return Term(f"(1.0f / (1.0f + expf(-{x.c})))") if isinstance(x, Term) else mx.sigmoid(x)


def root(x: Any) -> Any:
    return Term(f"sqrtf({x.c})") if isinstance(x, Term) else mx.sqrt(x)


def where(mask: Any, value: Any, otherwise: Any) -> Any:
    """`value` where the mask is one, not zero."""
    if isinstance(mask, Term):
        return Term(f"select({mask.c}, {_c(value)}, {_c(otherwise)})")
    return mx.where(mask, value, otherwise)


def fused(formula: Formula, arrays: Sequence[mx.array | None], dtypes: Sequence[mx.Dtype]) -> list[mx.array]:
    """The results of a formula (a module's function, not one made anew each time), as arrays of these dtypes.

    arrays: what the formula is of; the first is [K, …, D], as the results are, the others that, or [K, 1, D],
    [K, 1, 1] or [1, 1, D]; or the first is [L, K, …, D], and others are [K, 1, …, 1]. None is handed to the formula
    as it is.
    """
    given = [array for array in arrays if array is not None]
    shape = given[0].shape
    if not backend.is_cuda() or math.prod(shape) >= 1 << 32:
        return [each.astype(dtype) for each, dtype in zip(formula(*arrays), dtypes, strict=True)]
    each = EACH if shape[-1] % EACH == 0 else 1
    places = tuple(array is not None and _place(array.shape, shape) for array in arrays)
    run = _kernel(formula, places, tuple(array.dtype for array in given), tuple(dtypes), each)
    blocks = -(-math.prod(shape) // (THREADS * each))
    return run(
        inputs=[*given, _sizes(shape)], template=[], grid=(blocks * THREADS, 1, 1), threadgroup=(THREADS, 1, 1),
        output_shapes=[shape] * len(dtypes), output_dtypes=list(dtypes),
    )  # fmt: skip


@cache
def _sizes(shape: tuple[int, ...]) -> mx.array:
    """How many numbers there are in [K, …, D], in a slot, in a row, and in what a slot has of [L, K, …, D]."""
    return mx.array([math.prod(shape), math.prod(shape[1:]), shape[-1], math.prod(shape[2:])], dtype=mx.uint32)


def _place(shape: tuple[int, ...], whole: tuple[int, ...]) -> str:
    """C for where, in an array of a shape, the number lies that goes with number i of the whole."""
    if shape == whole:
        return ""
    if len(shape) < len(whole):
        return "i % sizes[1] / sizes[3]"
    row = "i / sizes[1]" if shape[0] > 1 else "0"
    return row if shape[-1] == 1 else f"{row} * sizes[2] + i % sizes[2]"


Places = tuple[str | Literal[False], ...]  # of a formula's arguments; "": the same as i; False: None is given


@cache
def _kernel(
    formula: Formula, places: Places, given: tuple[mx.Dtype, ...], dtypes: tuple[mx.Dtype, ...], each: int
) -> Callable[..., list[mx.array]]:
    taken = [f"x{number}" for number, place in enumerate(places) if place is not False]
    whole = [f"x{number}" for number, place in enumerate(places) if place == ""]
    terms = [_read(f"x{number}", place) for number, place in enumerate(places)]
    made = {f"y{number}": C_TYPES[dtype] for number, dtype in enumerate(dtypes)}
    values = zip(made.items(), formula(*terms), strict=True)
    source = f"""
        uint32_t first = (blockIdx.x * {THREADS} + threadIdx.x) * {each};
        if (first >= sizes[0]) return;
        {" ".join(f"auto all_{x} = several<{each}>({x} + first);" for x in whole)}
        {" ".join(f"Several<{c}, {each}> all_{y};" for y, c in made.items())}
        #pragma unroll
        for (uint32_t j = 0; j < {each}; ++j) {{
            uint32_t i = first + j;
            {" ".join(f"all_{y}.at[j] = {c}({term.c});" for (y, c), term in values)}
        }}
        {" ".join(f"*reinterpret_cast<decltype(all_{y})*>({y} + first) = all_{y};" for y in made)}
    """
    header = """
        template <typename T, int N>
        struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Several { T at[N]; };
        template <int N, typename T>
        __device__ Several<T, N> several(const T* from) { return *reinterpret_cast<const Several<T, N>*>(from); }
        __device__ float select(float mask, float value, float otherwise) { return mask != 0.0f ? value : otherwise; }
    """
    # MLX knows a compiled kernel by its name.
    name = f"{formula.__name__.strip('_')}_{zlib.crc32(f'{given}{source}'.encode()):08x}"
    return mx.fast.cuda_kernel(
        name=name, input_names=[*taken, "sizes"], output_names=list(made), source=source, header=header
    )


def _read(name: str, place: str | Literal[False]) -> Term | None:
    if place is False:
        return None
    return Term(f"float({name}[{place}])" if place else f"float(all_{name}.at[j])")
