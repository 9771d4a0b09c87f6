"""Python builds a step of the same shapes once more, and then no more."""

import gc
from collections.abc import Callable, Iterator
from typing import Any
from weakref import ref

import mlx.core as mx
import pytest

from lora_core import backend
from lora_core.replayed import KEPT, PLAIN_CALLS, replayed
from tests.lora_core.helpers import new_engine
from tests.lora_core.helpers import run as train


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was built, by name, on what takes itself for CUDA."""
    monkeypatch.setattr(backend, "is_cuda", lambda: True)
    mx.enable_compile()
    yield []
    mx.disable_compile()


def product_of(built: list[str]) -> Callable[..., Any]:
    def product(name: str, left: list[mx.array], rows: dict[str, mx.array]) -> tuple[list[mx.array], mx.array]:
        built.append(name)
        return [left[0] @ rows["x"]], rows["x"].sum()

    return replayed(product)


def run(function: Callable[..., Any], name: str, times: int, width: int = 2) -> None:
    for k in range(times):
        (product,), total = function(name, [k * mx.ones((3, 4))], {"x": mx.ones((4, width))})
        assert product.tolist() == [[4.0 * k] * width] * 3 and total.item() == 4 * width


def test_what_is_called_often_is_built_no_more(built):
    function = product_of(built)
    run(function, "pack", PLAIN_CALLS + 10)
    assert built == ["pack"] * (PLAIN_CALLS + 1)


def test_other_shapes_are_built_for_themselves(built):
    function = product_of(built)
    run(function, "pack", PLAIN_CALLS)
    built.clear()
    for _ in range(3):
        run(function, "pack", 2)
        run(function, "pack", 2, width=5)
    assert built == ["pack"] * 2


def test_each_pack_counts_for_itself(built):
    function = product_of(built)
    run(function, "pack", PLAIN_CALLS + 1)
    built.clear()
    run(function, "other", 2)
    run(function, "pack", 2)
    assert built == ["other"] * 2


def test_the_latest_are_kept(built):
    function = product_of(built)
    run(function, "pack", PLAIN_CALLS + 1)
    for number in range(KEPT - 1):
        run(function, f"other {number}", 1)
    built.clear()
    run(function, "pack", 1)
    assert built == []
    for number in range(KEPT):
        run(function, f"another {number}", 1)
    built.clear()
    run(function, "pack", 1)
    assert built == ["pack"]


def test_elsewhere_every_step_is_built(built, monkeypatch):
    monkeypatch.setattr(backend, "is_cuda", lambda: False)
    run(product_of(built), "pack", PLAIN_CALLS + 10)
    assert len(built) == PLAIN_CALLS + 10


def test_an_engine_that_is_done_takes_no_memory(make_spec):
    """Not even until Python looks for what keeps each other."""
    gc.collect()
    gc.disable()
    try:
        engine = new_engine()
        train(engine, make_spec("only", iters=1))
        computation = ref(engine.computation)
        del engine
        assert computation() is None
    finally:
        gc.enable()
