"""Formulas as they are written for arrays, and as C for a kernel, whose text is computed with here."""

import math
import re
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lora_core import adamw, fused, layers, remade
from lora_core.fused import Term

SHAPE = (2, 3, 4)
FORMULAS = [
    (remade._gated, 2, []),
    (remade._gated_gradients, 3, []),
    (layers._kept, 1, ["mask", "keep"]),
    (layers._sum_of_kept, 2, ["mask", "keep"]),
    (layers._scaled_sum, 2, ["gain", None, None, None]),
    (layers._scaled_sum, 2, ["gain", "bias", "mask", "keep"]),
    (layers._scaled_gradients, 3, ["gain", "bias", "mask", "keep"]),
    (adamw._adamw, 2, ["squares", "bias", "slots", "slots", "slots", "slots", "slots", "alive"]),
]
OTHERS = {
    "mask": mx.array(np.arange(24).reshape(SHAPE) % 3 > 0),
    "keep": mx.array([0.5, 0.8]).reshape(2, 1, 1),
    "gain": mx.arange(8.0).reshape(2, 1, 4) / 5 + 0.5,
    "bias": mx.arange(4.0).reshape(1, 1, 4),
    "squares": mx.arange(24.0).reshape(SHAPE),
    "slots": mx.array([0.3, 1.0, 1.5]).reshape(3, 1),
    "alive": mx.array([True, False, True]).reshape(3, 1),
}


def arguments(rows: int, others: list[str | None]) -> list[mx.array | None]:
    drawn = [mx.random.normal(SHAPE, key=mx.random.key(i)) for i in range(rows)]
    return [*drawn, *(None if name is None else OTHERS[name] for name in others)]


def computed(term: Term, names: dict[str, Any]) -> float:
    """What the C expression gives: here it is Python too, but for how C writes float numbers."""
    known = {
        "expf": math.exp,
        "sqrtf": math.sqrt,
        "select": lambda mask, value, otherwise: value if mask else otherwise,
    }
    return eval(re.sub(r"(\d)f\b", r"\1", term.c), known, names)


@pytest.mark.parametrize(("formula", "rows", "others"), FORMULAS)
def test_the_c_of_a_formula_gives_its_numbers(formula, rows, others):
    given = arguments(rows, others)
    expected = [np.array(found) for found in formula(*given)]
    terms = formula(*(None if array is None else Term(f"x{i}") for i, array in enumerate(given)))
    whole = [None if array is None else np.broadcast_to(np.array(array), SHAPE) for array in given]
    for place in np.ndindex(SHAPE):
        names = {f"x{i}": float(array[place]) for i, array in enumerate(whole) if array is not None}
        for term, values in zip(terms, expected, strict=True):
            assert computed(term, names) == pytest.approx(float(values[place]), rel=1e-5, abs=1e-6)


def test_infix_keeps_sides_apart():
    x, y = Term("x"), Term("y")
    for term, expected in ((1 - x, -1), (x - 1, 1), (x / y, 0.5), (2 + x * y, 10), (x * (1 + y), 10)):
        assert computed(term, {"x": 2.0, "y": 4.0}) == expected


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 1, 4), (2, 1, 1), (1, 1, 4), (3, 1)])
def test_where_a_smaller_array_has_its_numbers(shape):
    small, whole = np.arange(math.prod(shape)), (2, 3, 4)
    expected = np.broadcast_to(small.reshape(shape), whole).ravel()
    place = fused._place(shape, whole) or "i"
    sizes = np.array(fused._sizes(whole)).tolist()
    found = [small[eval(place.replace("/", "//"), {"i": i, "sizes": sizes})] for i in range(24)]
    assert found == expected.tolist()


def test_elsewhere_the_results_have_the_dtypes_asked_for():
    values = mx.ones(SHAPE).astype(mx.bfloat16)
    (sums,) = fused.fused(layers._sum_of_kept, [values, mx.ones(SHAPE), OTHERS["mask"], OTHERS["keep"]], [mx.bfloat16])
    assert sums.dtype == mx.bfloat16 and sums[0, 0].tolist() == [1, 3, 3, 1]


def test_a_kernel_has_a_name_of_its_own(monkeypatch):
    """MLX takes a compiled kernel by its name alone."""
    monkeypatch.setattr(mx.fast, "cuda_kernel", lambda **made: made)
    made = [
        fused._kernel(remade._gated, ("", ""), (dtype, dtype), (result,), each)
        for dtype in (mx.float32, mx.bfloat16)
        for result in (mx.float32, mx.bfloat16)
        for each in (1, 8)
    ]
    assert len({kernel["name"] for kernel in made}) == len(made)
    assert all(kernel["input_names"] == ["x0", "x1", "sizes"] for kernel in made)
