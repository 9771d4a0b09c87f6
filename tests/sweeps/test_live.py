"""The parts of the live table."""

import math

import pytest

from sweeps.live import in_lines, sparkline


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([], ""),
        ([2.0], "▁"),
        ([2.0, 2.0], "▁▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([7, 0], "█▁"),
        ([100.0, *range(8)], "▁▂▃▄▅▆▇█"),  # the last ones, and what lies before does not flatten them
        ([1.0, math.nan, math.inf, 2.0], "▁█"),
    ],
)
def test_sparkline(values: list[float], shown: str) -> None:
    assert sparkline(values, 8) == shown


def test_lines_break_between_parts() -> None:
    parts = ["3/32 trials", "best 0.2069 trial-0006", "5 min left"]
    assert in_lines(parts, 80) == ["3/32 trials  best 0.2069 trial-0006  5 min left"]
    assert in_lines(parts, 35) == ["3/32 trials  best 0.2069 trial-0006", "5 min left"]
    assert in_lines(parts, 34) == ["3/32 trials", "best 0.2069 trial-0006  5 min left"]
    assert in_lines(parts, 5) == parts
