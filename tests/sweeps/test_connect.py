"""The lock under which databases are opened."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sweeps.connect import alone


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where lock files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_one_at_a_time_and_nothing_is_left(place: Path) -> None:
    """Each thread opens the lock anew, as a process would."""
    inside, most, rounds = 0, 0, 0

    def enter(_: int) -> None:
        nonlocal inside, most, rounds
        with alone("database"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.001)
            rounds += 1
            inside -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(enter, range(200)))
    assert (most, rounds) == (1, 200)
    assert list(place.iterdir()) == []


def test_a_block_that_fails_and_a_file_of_one_that_was_killed_hold_up_nobody(place: Path) -> None:
    with pytest.raises(ValueError), alone("database"):
        (left,) = place.iterdir()
        raise ValueError
    left.touch()
    with alone("database"), alone("another"):
        assert len(list(place.iterdir())) == 2
    assert list(place.iterdir()) == []
