"""A table of the faults that were tried, below what pytest says at the end; one table also of several processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import pytest


@dataclass
class Row:
    """`lost`: trials that had ended, and were gone or different."""

    tried: int = 0
    survived: int = 0
    lost: int = 0

    def add(self, tried: int, survived: int, lost: int) -> None:
        self.tried, self.survived, self.lost = self.tried + tried, self.survived + survived, self.lost + lost


TABLE: dict[str, Row] = {}


@contextmanager
def tried(fault: str, times: int = 1) -> Iterator[Row]:
    """A block that does not fail where a fault is survived."""
    row = TABLE.setdefault(fault, Row())
    row.tried += times
    yield row
    row.survived += times


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = {fault: astuple(row) for fault, row in TABLE.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Adds the table of one process, unless that has died."""
    for fault, row in getattr(node, "workeroutput", {}).get("faults", {}).items():
        TABLE.setdefault(fault, Row()).add(*row)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if TABLE:
        terminalreporter.write_line("\n| fault | tried | survived | trials lost |\n|---|---|---|---|")
    for fault, row in TABLE.items():
        terminalreporter.write_line(f"| {fault} | {row.tried} | {row.survived} | {row.lost} |")
