"""The lock under which databases are opened, and how long a server may take."""

import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sweeps.connect import FAILURES, alone, open_client  # isort: skip  (prepares the import of mlflow)
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

SLOW = 1.5  # seconds


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where lock files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_one_at_a_time_and_nothing_is_left(place: Path) -> None:
    """Each thread opens the lock anew, as a process would."""
    inside, most, rounds = 0, 0, 0

    def enter(_: int) -> None:
        nonlocal inside, most, rounds
        with alone("database"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.001)
            rounds += 1
            inside -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(enter, range(200)))
    assert (most, rounds) == (1, 200)
    assert list(place.iterdir()) == []


def test_a_block_that_fails_and_a_file_of_one_that_was_killed_hold_up_nobody(place: Path) -> None:
    with pytest.raises(ValueError), alone("database"):
        (left,) = place.iterdir()
        raise ValueError
    left.touch()
    with alone("database"), alone("another"):
        assert len(list(place.iterdir())) == 2
    assert list(place.iterdir()) == []


class Slow(BaseHTTPRequestHandler):
    """Takes what it is sent at once, and its time to answer."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self) -> None:
        if self.path != "/health":
            time.sleep(SLOW)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def slow_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_a_server_may_take_long_over_a_file_only(
    slow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "adapter").write_bytes(b"weights")
    files = HttpArtifactRepository(f"{slow_server}/api/2.0/mlflow-artifacts/artifacts/1")
    files.log_artifact(str(tmp_path / "adapter"))
    files._download_file("adapter", str(tmp_path / "brought"))
    assert (tmp_path / "brought").read_bytes() == b"{}"
    with pytest.raises(FAILURES, match="timeout"):
        open_client(slow_server).get_run("0" * 32)
