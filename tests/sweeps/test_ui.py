"""The MLflow UI as `lora-sweep ui` starts it: on a free port, small, and gone afterwards."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from lora_core.errors import UserError
from lora_core.records import StudyRecord
from lora_core.trial import TrialSpec
from sweeps import ui
from sweeps.connect import open_client
from sweeps.tracking import Tracker


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store that holds `older`, then `newer`."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("older", "newer"):
            study = StudyRecord(name)
            tracker = Tracker(uri, f"tiny/{name}")
            tracker.open_study(study, folder / name)
            tracker.close_study(study, "complete", None)
        yield uri


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind((ui.HOST, 0))
        return probe.getsockname()[1]


def processes_of(program: int) -> int:
    """How many processes a program and what it started are."""
    listed = subprocess.run(["ps", "-eo", "ppid=,pid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    family = {program}
    for _ in range(4):
        family |= {pid for parent, pid in pairs if parent in family}
    return len(family)


def test_it_serves_the_store_small_and_ends_cleanly(store: str, port: int) -> None:
    """By SIGTERM here; the README's test ends it by Ctrl-C."""
    command = [
        sys.executable,
        "-u",
        "-m",
        "sweeps",
        "ui",
        "--uri",
        store,
        "--port",
        str(port),
        "--no-browser",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as program:
        assert program.stdout is not None
        program.stdout.readline()
        link = program.stdout.readline()
        assert link.startswith(f"http://127.0.0.1:{port}/#/experiments/")
        assert urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
        assert processes_of(program.pid) <= 3  # this program, the server, its one worker
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=20) == 0
    with pytest.raises(OSError):
        urlopen(f"http://127.0.0.1:{port}/health", timeout=1)


def test_the_newest_study_unless_one_is_named(store: str) -> None:
    assert ui.study_page(store, None, "http://here").endswith("viewStateShareKey=newer")
    assert ui.study_page(store, "older", "http://here").endswith("viewStateShareKey=older")
    with pytest.raises(UserError, match=r"Did you mean newer\?"):
        ui.study_page(store, "newest", "http://here")


def test_without_its_view_a_study_opens_by_a_search(store: str, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    shutil.copy(store.removeprefix("sqlite:///"), tmp_path)
    client = open_client(uri)
    experiment = client.get_experiment_by_name("tiny/older")
    assert experiment is not None
    client.delete_experiment_tag(experiment.experiment_id, "mlflow.sharedViewState.older")
    page = ui.study_page(uri, "older", "http://here")
    assert "viewStateShareKey" not in page and "%60sweep.study%60%20%3D%20%27older%27" in page
    assert "orderByAsc=true" in page and "orderByKey=metrics.%60best_val_loss%60" in page


def test_a_single_run_opens_at_its_own_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = "sqlite:///mlflow.db"
    tracker = Tracker(uri, "tiny/demo")
    assert ui.study_page(uri, None, "http://here") == "http://here", "nothing to open at yet"
    study = StudyRecord("my-run", kind="train")
    tracker.open_study(study, tmp_path)
    tracker.start_trial(study, TrialSpec("my-run", "train", {}, str(tmp_path)))
    for name in ("my-run", "train/my-run", None):
        assert f"/runs/{study.runs['my-run']}?" in ui.study_page(uri, name, "http://here")
    with pytest.raises(UserError, match=r"Did you mean train/my-run"):
        ui.study_page(uri, "train/my-rum", "http://here")


def test_no_store_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"mlflow\.db does not exist"):
        ui.main(["--port", str(port)])
    assert os.listdir(tmp_path) == []


def test_a_port_that_is_taken(store: str) -> None:
    with socket.socket() as other:
        other.bind((ui.HOST, 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"(?s)Port {taken} .*--port"):
            ui.main(["--uri", store, "--port", str(taken)])
    with pytest.raises(UserError, match="Port 99999"):
        ui.main(["--uri", store, "--port", "99999"])


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("sqlite:///", "expected the name of a file"),
        ("file:///mlruns", "expected a URL such as"),
        ("mlflow.db", "expected a URL such as"),
    ],
)
def test_what_is_no_store(uri: str, words: str, port: int) -> None:
    with pytest.raises(UserError, match=words):
        ui.main(["--uri", uri, "--port", str(port), "--no-browser"])
