"""How numbers are written."""

import pytest

from reports.wording import count


@pytest.mark.parametrize(
    ("number", "shown"), [(None, "–"), (999_999, "999,999"), (2_442_240, "2.44M"), (8.03e9, "8.03B")]
)
def test_a_count_where_room_is_scarce(number: float | None, shown: str) -> None:
    assert count(number) == shown
