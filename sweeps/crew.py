"""The processes that work on one study, on one machine or on many: who is there, who leads, and whose turn it is.

Each has an entry among the study's attributes in the database, with a number that it raises every few seconds. To the
others it is gone once that number has stood still for `MISSES` of their own looks. So no clocks are compared, a process
that slept misses nobody, and while the database is away nobody is missed.
"""

import os
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from sweeps.requests import StopRequest

MISSES = 6
ENTRY, LEAD, ASKED, PARTING = "process ", "lead", "asked ", "parting"
Sign = tuple[str, int | None]  # a process, and the number that it has raised; None: it has left
_LOCK = sqlalchemy.text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")


class Solo:
    """The only process at work on its study."""

    me: str | None = None
    leads, leaderless, lead = True, False, ""
    sign_of_lead: Sign = ("", None)
    asked: tuple[StopRequest, ...] = ()

    def alone(self) -> AbstractContextManager[None]:
        return nullcontext()

    def at_work(self, process: str | None) -> bool:
        return False

    def take_lead(self) -> bool:
        return True

    def is_led(self, since: Sign) -> bool:
        return False

    def pass_on(self, request: StopRequest) -> None:
        """Nobody is there to hear of it."""

    def part(self) -> None:
        """Nobody waits for it."""

    def leave(self) -> None:
        """Nobody is there to notice."""


class Crew:
    """This process among all that work on `study`. `turn`: a block that one of them is in at a time; `grace`: seconds
    without a sign of life after which one is gone."""

    def __init__(self, study: optuna.Study, turn: Callable[[], AbstractContextManager[None]], grace: float) -> None:
        self.study = study
        self.alone = turn
        self.me = secrets.token_hex(6)
        self.leaderless = self._led = False
        self.asked: tuple[StopRequest, ...] = ()  # what processes were asked to stop since this one came
        self._asked_before = _requests(study.user_attrs)
        self._passed_on: StopRequest | None = None
        self._pause = grace / MISSES
        self._beat = 0
        self._known: dict[str, tuple[str, int | None]] = {}  # process → where it runs, and its number; None: it left
        self._missed: Counter[str] = Counter()
        self._left = threading.Event()
        self._enter()
        self._look()
        self._thread = threading.Thread(target=self._stay, name="signs of life", daemon=True)
        self._thread.start()

    def at_work(self, process: str | None) -> bool:
        """Whether another process, the one by this name, is at work on the study."""
        if process is None or process == self.me:
            return False
        if process not in self._known:  # it may have come since the last look
            self._known = _entries(self.study.user_attrs) | self._known
        return self._is_there(process)

    def take_lead(self) -> bool:
        """Whether this process leads the study: it does from now on if nobody else does."""
        with self.alone():
            if not self.at_work(self.study.user_attrs.get(LEAD)):
                self.study.set_user_attr(LEAD, self.me)
        return self.leads

    @property
    def leads(self) -> bool:
        """Whether this process leads the study. The database says so, as this process may have slept, and have been
        taken for gone; while it is away, what it has said last counts."""
        with suppress(SQLAlchemyError, StorageInternalError):
            self._led = self.study.user_attrs.get(LEAD) == self.me
        return self._led

    @property
    def lead(self) -> str:
        """Where the process runs that leads, or led last."""
        return self._known.get(self.study.user_attrs.get(LEAD, ""), ("another machine", None))[0]

    @property
    def sign_of_lead(self) -> Sign:
        """The process that leads, or has led last, and its number."""
        return _sign_of_lead(self.study.user_attrs)

    def is_led(self, since: Sign) -> bool:
        """Whether another process finishes the study: the one that leads has given a sign of life other than `since`,
        or left, and has not said that it finishes nothing any more."""
        attributes = self.study.user_attrs
        lead, number = sign = _sign_of_lead(attributes)
        parts = attributes.get(PARTING) == lead
        return lead != self.me and not parts and (number is None or sign != since)

    def part(self) -> None:
        """Has the others know that this process finishes nothing any more. They can lead once it has left."""
        if self.leads:
            with suppress(SQLAlchemyError, StorageInternalError):
                self.study.set_user_attr(PARTING, self.me)

    def pass_on(self, request: StopRequest) -> None:
        """Has the others know what this process was asked to stop."""
        if request != self._passed_on:
            self.study.set_user_attr(ASKED + self.me, asdict(request))
            self._passed_on = request

    def leave(self) -> None:
        """What this process has begun may be taken over at once."""
        self._left.set()
        self._thread.join()
        with suppress(SQLAlchemyError, StorageInternalError):  # otherwise it is missed after a while
            self._write(None)

    def _stay(self) -> None:
        while not self._left.wait(self._pause):
            try:
                self._enter()
                self._look()
            except (SQLAlchemyError, StorageInternalError):
                self._missed.clear()

    def _enter(self) -> None:
        self._beat += 1
        self._write(self._beat)

    def _write(self, beat: int | None) -> None:
        self.study.set_user_attr(ENTRY + self.me, (f"{socket.gethostname()}, process {os.getpid()}", beat))

    def _look(self) -> None:
        attributes = self.study.user_attrs
        entries = _entries(attributes)
        for process, entry in entries.items():
            self._missed[process] = self._missed[process] + 1 if self._known.get(process) == entry else 0
        self._known = entries
        new = [each for key, each in _requests(attributes).items() if self._asked_before.get(key) != each]
        self.asked = tuple(StopRequest(**each) for each in new)
        lead = attributes.get(LEAD, "")
        self.leaderless = lead != self.me and not self._is_there(lead)

    def _is_there(self, process: str) -> bool:
        _, beat = self._known.get(process, ("", None))
        return beat is not None and self._missed[process] < MISSES


def _entries(attributes: dict[str, Any]) -> dict[str, tuple[str, int | None]]:
    return {key.removeprefix(ENTRY): tuple(value) for key, value in attributes.items() if key.startswith(ENTRY)}


def _sign_of_lead(attributes: dict[str, Any]) -> Sign:
    lead = attributes.get(LEAD, "")
    return lead, _entries(attributes).get(lead, ("", None))[1]


def _requests(attributes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if key.startswith(ASKED)}


@contextmanager
def turn(engine: sqlalchemy.Engine, name: str, limit: float) -> Iterator[None]:
    """A block that one process at a time is in, of all that use this PostgreSQL database. One that stands still in it
    for `limit` seconds loses its turn, and the block raises OperationalError at its end."""
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(f"SET LOCAL idle_in_transaction_session_timeout = {int(limit * 1000)}"))
        connection.execute(_LOCK, {"name": f"lora-sweep {name}"})
        yield
        connection.execute(sqlalchemy.text("SELECT 1"))
