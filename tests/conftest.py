"""A BLAS must be loaded before anything imports mlx, so this comes first. And a PostgreSQL server for who wants one."""

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest

from lora_core import backend
from tests import postgres

# Processes that xdist starts share the cores: with more threads than cores they mostly wait for one another.
if processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.update(backend.threads(max(1, (os.cpu_count() or 1) // processes)) | os.environ)

backend.prepare()

pytest_plugins = ["tests.fault_table"]

# Set by `uv run pytest`. What the program prints must not depend on how the tests are started.
os.environ.pop("UV_RUN_RECURSION_DEPTH", None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    """Without one installed, the test is skipped; not where REQUIRE_POSTGRES is set, as in CI."""
    programs = postgres.programs()
    if programs is None:
        reason = "PostgreSQL is not installed: no initdb in /usr/lib/postgresql/*/bin nor on the path"
        assert "REQUIRE_POSTGRES" not in os.environ, reason
        pytest.skip(reason)
    with postgres.server(programs) as server:
        yield server


@pytest.fixture
def database(postgres_server: postgres.Server) -> str:
    """The address of a PostgreSQL database that is empty."""
    return postgres_server.database(f"d{uuid4().hex}")
