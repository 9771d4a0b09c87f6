"""A sequence that fills a space evenly, axis by axis."""

import math
from collections import Counter

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sweeps.lowdiscrepancy import point, value_at


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (CategoricalDistribution(["a", 1, None]), ["a", 1, None]),
        (IntDistribution(2, 8, step=2), [2, 4, 6, 8]),
        (IntDistribution(3, 5), [3, 4, 5]),
        (FloatDistribution(0.1, 0.3, step=0.1), [0.1, 0.2, 0.3]),
        (IntDistribution(7, 7), [7]),
    ],
)
def test_every_value_of_a_discrete_axis_has_the_same_share(distribution: BaseDistribution, values: list) -> None:
    found = [value_at(distribution, (i + 0.5) / 60) for i in range(60)]
    counts = Counter(round(value, 9) if isinstance(value, float) else value for value in found)
    assert counts == dict.fromkeys(values, 60 // len(values))
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in found)


def test_intervals() -> None:
    assert [value_at(FloatDistribution(1, 3), share) for share in (0.0, 0.5)] == [1, 2]
    log = FloatDistribution(1e-4, 1e-2, log=True)
    assert value_at(log, 0.5) == pytest.approx(1e-3)
    assert all(1e-4 <= value_at(log, share) <= 1e-2 for share in (0.0, 1 - 1e-16))
    whole = IntDistribution(1, 64, log=True)
    halves = [value_at(whole, share) for share in (0.0, 0.5, 1 - 1e-16)]
    assert halves[0] == 1 and halves[2] == 64 and halves[1] == round(math.sqrt(0.5 * 64.5))


def test_each_quarter_of_each_axis_gets_its_share_and_seeds_differ() -> None:
    space: dict[str, BaseDistribution] = {name: FloatDistribution(0, 1) for name in "abc"}
    points = [point(space, 0, index) for index in range(16)]
    for name in space:
        assert Counter(int(4 * each[name]) for each in points) == {0: 4, 1: 4, 2: 4, 3: 4}
    assert points[5] != point(space, 1, 5)
