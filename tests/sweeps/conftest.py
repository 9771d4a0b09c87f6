"""An empty folder, a machine that is worse than this one, and a table of what was survived."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sweeps.faults import TABLE

ROOT = Path(__file__).parents[2]


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


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Of the faults that were tried, if there were any."""
    if TABLE:
        terminalreporter.write_line("\n| fault | tried | survived | trials lost |\n|---|---|---|---|")
    for fault, row in TABLE.items():
        terminalreporter.write_line(f"| {fault} | {row.tried} | {row.survived} | {row.lost} |")
