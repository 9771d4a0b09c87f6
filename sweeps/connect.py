"""Reaching an MLflow store: quickly, quietly, and with a plain message where it cannot be reached.

Left alone, MLflow tries a store that is not there for minutes. So each kind of store is tried once here, with
a short timeout, before MLflow sees its address.
"""

import fcntl
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from lora_core.errors import UserError
from sweeps.public import public

# Read by MLflow when it is imported. A value that the user has set is left alone.
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)

import sqlalchemy  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.store.artifact import http_artifact_repo  # noqa: E402

FAILURES = (MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError)  # what a store that fails raises
PATIENCE = 2  # seconds to wait for a server or a locked database before the first call
FILE_PATIENCE = 300  # seconds to wait for a server that has a file: of several GB, it may have to pass them on
_TIMEOUTS = {"sqlite": "timeout", "postgresql": "connect_timeout", "mysql": "connect_timeout"}

logging.getLogger("alembic").setLevel(logging.WARNING)
# What MLflow logs of a failing store, with a traceback, is raised too, and said by us in a line.
logging.getLogger("mlflow").setLevel(logging.CRITICAL)
# MLflow knows one timeout only, and tries a file again from its first byte; we do that ourselves, later.
http_artifact_repo.http_request = partial(http_artifact_repo.http_request, timeout=FILE_PATIENCE, max_retries=0)


def open_client(uri: str) -> MlflowClient:
    """A client of the store at `uri`, its tables made if need be.

    Raises UserError within a few seconds if the store cannot be used.
    """
    try:
        if uri.startswith(("http://", "https://")):
            check_server(uri)
            return MlflowClient(uri)
        _try_database(uri)
        with alone(str(sqlite_file(uri) or uri)):
            return MlflowClient(uri)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"tracking.uri={public(uri)} needs a package: {first_line(error)}.") from None
    except Exception as error:
        raise UserError(f"tracking.uri={public(uri)} cannot be used: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without the name of the driver that raised it, and without secrets."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # SQLAlchemy may begin with advice for programmers.
    told = next((line for line in lines if not line.startswith("(raised as a result of")), lines[0])
    return public(re.sub(r"^\([\w.]+\) ", "", told))[:160]


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store; None for any other kind."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def check_server(uri: str) -> None:
    """Raises UserError within a few seconds if nothing answers at `uri`."""
    try:
        urlopen(f"{public(uri).rstrip('/')}/health", timeout=PATIENCE).close()
    except HTTPError:
        return  # Something answers. Whether it is MLflow, the first real call will tell.
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"tracking.uri={public(uri)}: no MLflow server answers there ({reason}).\n"
            "Start it, or use a file in this folder: tracking.uri=sqlite:///mlflow.db"
        ) from None


def _try_database(uri: str) -> None:
    """Connects once, and for SQLite asks for the right to write."""
    dialect = uri.partition(":")[0].partition("+")[0]
    arguments: dict[str, Any] = {_TIMEOUTS[dialect]: PATIENCE} if dialect in _TIMEOUTS else {}
    engine = sqlalchemy.create_engine(uri, connect_args=arguments, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        if dialect == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            connection.exec_driver_sql("ROLLBACK")


@contextmanager
def alone(name: str) -> Iterator[None]:
    """One process at a time: two that create the tables of one database together would both crash. Leaves no file."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"lora-sweep-{os.getuid()}-{digest}.lock"
    handle = _hold(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: who waits for it finds that it is gone, and takes a new one
        os.close(handle)


def _hold(path: Path) -> int:
    """The lock on the file that is at `path` once the lock is had: the holder before removes its own."""
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)
