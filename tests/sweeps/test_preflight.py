"""What is undone when a run is refused, and what must not be."""

import threading
from pathlib import Path

import pytest

from sweeps.preflight import opening


def refused(file: Path) -> None:
    """Makes the database and is refused."""
    with pytest.raises(ValueError, match="refused"), opening(f"sqlite:///{file}"):
        file.write_text("ours")
        raise ValueError("refused")


def test_only_a_database_that_was_made_for_it_goes(tmp_path: Path) -> None:
    refused(tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()
    (tmp_path / "old.db").write_text("theirs")
    refused(tmp_path / "old.db")
    assert (tmp_path / "old.db").exists()


def test_what_went_well_stays(tmp_path: Path) -> None:
    undone = []
    with opening(f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/a.db", "http://127.0.0.1:5000") as undo:
        (tmp_path / "a.db").write_text("ours")
        undo.callback(undone.append, "a.db")
    assert (tmp_path / "a.db").exists() and not undone


def test_one_that_is_refused_does_not_take_the_database_of_another(tmp_path: Path) -> None:
    """The other one starts while the file is there, and finds out too late that it was taken away."""
    file = tmp_path / "mlflow.db"
    entered = threading.Event()

    def other() -> None:
        with opening(f"sqlite:///{file}"):
            entered.set()
            file.open("a").close()

    thread = threading.Thread(target=other)
    with pytest.raises(ValueError, match="refused"), opening(f"sqlite:///{file}"):
        file.write_text("ours")
        thread.start()
        entered.wait(0.5)
        thread.join(0.5)
        raise ValueError("refused")
    thread.join(10)
    assert entered.is_set() and file.exists()
