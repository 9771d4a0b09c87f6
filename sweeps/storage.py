"""The database that coordinates a study, opened; where it cannot be, that is said in a line."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import optuna
import sqlalchemy

from lora_core.errors import UserError
from sweeps.config import is_shared
from sweeps.connect import first_line
from sweeps.crew import turn
from sweeps.public import public

OPENING = 600  # seconds that the opening of a study may take
SQLITE_TIMEOUT = 60  # seconds to wait for a locked database


@contextmanager
def opening_shared(url: str) -> Iterator[None]:
    """A block that one process at a time is in, of all that open a shared storage: its tables may have to be made.
    Raises UserError if it cannot be opened."""
    with ExitStack() as block:
        if is_shared(url):
            with _told(url):
                engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
                block.enter_context(turn(engine, "opening", OPENING))
        yield


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """The storage at `url`, its tables made if need be. Raises UserError if it cannot be opened."""
    arguments: dict[str, Any] = {"connect_args": {"timeout": SQLITE_TIMEOUT}} if url.startswith("sqlite") else {}
    with _told(url):
        return optuna.storages.RDBStorage(url, engine_kwargs=arguments)


@contextmanager
def _told(url: str) -> Iterator[None]:
    """What goes wrong in the block is told in a line."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"storage={public(url)} needs a package{_driver(url, error)}") from None
    except Exception as error:
        raise UserError(f"storage={public(url)} cannot be opened: {first_line(error)}") from None


def _driver(url: str, error: ImportError) -> str:
    """How to get the package that speaks to this kind of database."""
    cause = error.__cause__ or error.__context__ or error
    if url.startswith("postgresql"):
        return ".\nInstall the extra postgres, and write the address as postgresql+psycopg://…"
    return f" ({getattr(cause, 'name', None) or first_line(error)})."
