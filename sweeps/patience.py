"""Waiting for a database that has gone away, as one does that is restarted."""

import functools
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, PendingRollbackError, ProgrammingError

from lora_core import disk
from lora_core.errors import UserError
from sweeps import interrupts
from sweeps.connect import first_line

P = ParamSpec("P")
R = TypeVar("R")
PATIENCE = 600.0  # seconds
LONGEST_PAUSE = 10.0


def patient(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Tries a method again until the database answers. The method may have been done, or half done, before; its object
    has a `say` for a line to the user."""

    @functools.wraps(method)
    def tried(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        began, pause = time.monotonic(), 0.25
        while True:
            try:
                return method(self, *args, **kwargs)
            except (DBAPIError, PendingRollbackError, StorageInternalError) as error:
                if not is_away(error):
                    raise
                if time.monotonic() - began > PATIENCE:
                    raise UserError(
                        f"The study's database has not answered for {PATIENCE / 60:.0f} minutes: {_reason(error)}\n"
                        "Nothing that ended is lost: the same command goes on once it is back."
                    ) from None
                if pause == 1.0:  # not worth a word before
                    self.say(f"The study's database does not answer ({_reason(error)}). Waiting for it.")
            with interrupts.waiting():
                time.sleep(pause)
            pause = min(LONGEST_PAUSE, 2 * pause)

    return tried


def is_away(error: Exception) -> bool:
    """Whether it may be otherwise later: the database cannot be reached, is busy, or broke off the conversation, for
    which drivers have all kinds of errors."""
    cause = _cause(error)
    if isinstance(cause, ProgrammingError | DataError | IntegrityError) or disk.is_full(cause):
        return False
    return isinstance(cause, DBAPIError | PendingRollbackError)


def _cause(error: Exception) -> BaseException:
    return (error.__cause__ or error) if isinstance(error, StorageInternalError) else error


def _reason(error: Exception) -> str:
    cause = _cause(error)
    return first_line(cause) if isinstance(cause, Exception) else str(cause)
