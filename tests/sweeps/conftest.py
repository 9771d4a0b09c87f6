"""An empty folder, a machine that is worse than this one, and several machines."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from lora_core import backend
from sweeps.cli import main
from tests.sweeps.helpers import ROOT, Place
from tests.sweeps.machines import Apart, Machines
from tests.sweeps.test_telling import Server


@event.listens_for(Engine, "connect")
def no_waiting_for_the_disk(connection: Any, _: Any) -> None:
    """What is written to SQLite outlives any process as it is; only a power cut could take it, and none is tested."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Has workers be `short_of_memory.main(how, slots, rank, step)`; returns the processes started since."""
    real = subprocess.Popen

    def arm(*given: Any) -> list[Any]:
        started: list[Any] = []

        def start(argv: list[str], **options: Any) -> Any:
            if argv[1:] == ["-m", "sweeps.worker"]:
                argv = [sys.executable, "-m", "tests.sweeps.short_of_memory", *map(str, given)]
                options["cwd"] = ROOT
                started.append(real(argv, **options))
                return started[-1]
            return real(argv, **options)

        monkeypatch.setattr(subprocess, "Popen", start)
        return started

    return arm


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Several that take all cores each would mostly wait for one another."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in backend.threads(1).items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def together(tmp_path: Path, database: str) -> Iterator[Machines]:
    """Machines that write to one folder."""
    there = Machines(Place(tmp_path), database)
    yield there
    there.end()


@pytest.fixture
def apart(tmp_path: Path, database: str) -> Iterator[Apart]:
    """Machines that do not."""
    place = Place(tmp_path)
    there = Apart(place, database, Server(place))
    yield there
    there.end()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> list[tuple]:
    """The results of one machine that has no company."""
    place = Place(tmp_path_factory.mktemp("alone"))
    assert main(Machines(place, f"sqlite:///{place.root}/optuna.db").arguments()) == 0
    return place.results()
