"""A database that goes away."""

import sqlite3

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DatabaseError, OperationalError, PendingRollbackError, ProgrammingError

from lora_core.errors import UserError
from sweeps import patience
from sweeps.patience import patient


class Asked:
    """Answers after so many failures, each of them `error`."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error = failures, error
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    @patient
    def ask(self, question: str) -> str:
        if self.failures:
            self.failures -= 1
            raise self.error
        return f"{question}!"


AWAY = OperationalError("SELECT 1", {}, sqlite3.OperationalError("connection refused"))


def wrapped(cause: Exception) -> Exception:
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = cause
    return error


@pytest.fixture(autouse=True)
def no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(patience.time, "monotonic", lambda: clock[0])


BROKEN_OFF = [
    DatabaseError("SELECT 1", {}, sqlite3.DatabaseError("connection refused")),
    PendingRollbackError("connection refused"),
]


@pytest.mark.parametrize("error", [AWAY, wrapped(AWAY), *map(wrapped, BROKEN_OFF)])
def test_it_is_asked_again(error: Exception) -> None:
    asked = Asked(9, error)
    assert asked.ask("so") == "so!"
    assert len(asked.said) == 1 and "connection refused" in asked.said[0]
    asked = Asked(2, error)
    assert asked.ask("so") == "so!" and asked.said == []


def test_not_for_ever() -> None:
    with pytest.raises(UserError, match=r"not answered for 10 minutes: connection refused\nNothing that ended is lost"):
        Asked(10**9, AWAY).ask("so")


def test_what_waiting_does_not_mend_is_raised() -> None:
    wrong = ProgrammingError("SELECT x", {}, sqlite3.ProgrammingError("no such column"))
    full = OperationalError("INSERT 1", {}, sqlite3.OperationalError("database or disk is full"))
    for error in (wrong, wrapped(wrong), full, wrapped(full)):
        with pytest.raises(type(error)):
            Asked(1, error).ask("so")
