"""Learning rates by step, against numbers worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_core.config import SCHEDULES, OptimizerConfig
from lora_core.schedule import learning_rate


def rates(steps: int, warmup: float = 0.0, schedule: str = "constant") -> list[float]:
    optimizer = OptimizerConfig(learning_rate=1.0, warmup=warmup, schedule=schedule)
    return [learning_rate(optimizer, step, steps) for step in range(steps)]


def test_constant_is_constant() -> None:
    assert rates(4) == [1, 1, 1, 1]


def test_linear_falls_by_equal_parts() -> None:
    assert rates(4, schedule="linear") == [1, 0.75, 0.5, 0.25]


def test_cosine_falls_as_half_a_cosine() -> None:
    assert rates(4, schedule="cosine") == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])


def test_warm_up_rises_linearly_to_the_full_rate() -> None:
    assert rates(8, warmup=0.5) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])
    assert rates(8, warmup=0.5, schedule="linear")[4:] == [1, 0.75, 0.5, 0.25]


@given(st.integers(1, 400), st.floats(0, 0.99), st.sampled_from(SCHEDULES))
def test_rates_are_above_zero_and_peak_at_the_end_of_the_warm_up(steps: int, warmup: float, schedule: str) -> None:
    found, warm = rates(steps, warmup, schedule), round(warmup * steps)
    assert all(0 < rate <= 1 for rate in found)
    assert found[:warm] == sorted(found[:warm]) and found[warm:] == sorted(found[warm:], reverse=True)
    if warm < steps:
        assert found[warm] == 1
