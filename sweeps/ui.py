"""`lora-sweep ui`: the MLflow UI on a store, started small and opened at a study."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.request import urlopen

from lora_core.errors import UserError, near

if TYPE_CHECKING:  # `sweeps.connect` decides how mlflow is imported
    from mlflow.entities import Run

HOST = "127.0.0.1"
STARTUP = 120  # seconds within which the server must answer
# Otherwise MLflow adds a dozen processes for features that have nothing to do with training.
_SMALL = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


def main(argv: list[str]) -> int:
    """Serves a store until Ctrl-C; returns the exit code. Raises UserError if store or port cannot be had."""
    given = _arguments(argv)
    from sweeps.config import check_store

    check_store(given.uri)
    is_server = given.uri.startswith(("http://", "https://"))
    if not is_server:
        _check_port(given.port)
    link = study_page(given.uri, given.study, f"http://{HOST}:{given.port}")
    if is_server:
        _show(link, given.browser)
        return 0
    with _server(given.uri, given.port) as process, suppress(KeyboardInterrupt):
        print("Ctrl-C ends it.")
        _show(link, given.browser)
        process.wait()
    return 0


def study_page(uri: str, study: str | None, local: str) -> str:
    """The page of `study`, or of the newest one, in the store at `uri`; at `local` if that is no server."""
    from sweeps.connect import open_client, sqlite_file
    from sweeps.links import base_of, run_link, study_link
    from sweeps.public import public
    from sweeps.view import PREFIX as VIEW

    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise UserError(f"{file} does not exist: nothing was tracked there.\nRun a search first, or give --uri.")
    base = base_of(uri, local)
    client = open_client(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = [
        run for role in ("study", "train") for run in client.search_runs(experiments, f"tags.`sweep.role` = '{role}'")
    ]
    runs = sorted(found, key=lambda run: run.info.start_time)
    named = {name: run for run in runs for name in _names(run)}
    if study is not None and study not in named:
        raise UserError(f"{study}: no such study in {public(uri)}.{near(study, named)}")
    if not runs:
        return base
    run = named[study] if study else runs[-1]
    if run.data.tags["sweep.role"] == "train":
        return run_link(base, run.info.experiment_id, run.info.run_id)
    experiment, name = client.get_experiment(run.info.experiment_id), run.data.tags["sweep.study"]
    return study_link(base, experiment.experiment_id, name, has_view=VIEW + name in experiment.tags)


def _names(run: "Run") -> list[str]:
    """What one may call it: a single run also by its place, as in other commands."""
    name = run.data.tags["sweep.study"]
    return [name, f"train/{name}"] if run.data.tags["sweep.role"] == "train" else [name]


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lora-sweep ui", description="Opens the MLflow UI at a study.")
    parser.add_argument("study", nargs="?", help="its name; train/NAME for a single run; default: the newest")
    parser.add_argument(
        "--uri",
        default=os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db",
        help="the MLflow store (default: MLFLOW_TRACKING_URI, or mlflow.db in this folder)",
    )
    parser.add_argument("--port", type=int, default=5000, help="default: 5000")
    parser.add_argument("--no-browser", dest="browser", action="store_false", help="only print the address")
    return parser.parse_args(argv)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"Port {port} cannot be used ({error}).\nGive another one: --port NUMBER") from None


@contextmanager
def _server(uri: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The server, once it answers. Whatever ends this program, by Ctrl-C or SIGTERM, ends the server too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    with tempfile.TemporaryFile("w+") as log:
        # Its own session, so that the server and its child can be ended together, and only by us.
        process = subprocess.Popen(
            command,
            env=os.environ | _SMALL,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            if not _answers(process, port):
                log.seek(0)
                raise UserError(f"The MLflow server did not start:\n{''.join(log.readlines()[-2:])}".rstrip())
            yield process
        finally:
            _end(process)


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + STARTUP
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urlopen(f"http://{HOST}:{port}/health", timeout=1).close()
            return True
        except OSError:
            time.sleep(0.2)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    for way in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, way)
            process.wait(timeout=10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _show(link: str, browser: bool) -> None:
    print(link, flush=True)
    # Without a display Python would fall back to a browser of text inside this terminal.
    if browser and (sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(link)
