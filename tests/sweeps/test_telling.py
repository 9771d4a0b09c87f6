"""MLflow goes away during a search, and comes back: nothing waits for it, and in the end it knows all, once."""

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest

from lora_core.records import StudyRecord, TrialRecord, load_metrics
from sweeps import telling
from sweeps.cli import main
from sweeps.display import Display
from sweeps.run_values import CURVES
from sweeps.standing import has_ended
from sweeps.store import Store
from sweeps.trial_run import TrialRun
from tests.fault_table import tried
from tests.sweeps.helpers import Place, quick

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread")]

SMALL = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


class Server:
    """An MLflow server on the store of a place."""

    def __init__(self, place: Place) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.root = place.root
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.root}/mlflow.db", "--workers", "1"]
        command += ["--artifacts-destination", f"{self.root}/artifacts"]
        self.process = subprocess.Popen(
            command, env=os.environ | SMALL, cwd=self.root, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        end = time.monotonic() + 120
        while not self.answers():
            assert time.monotonic() < end and self.process.poll() is None
            time.sleep(0.1)

    def answers(self) -> bool:
        try:
            urlopen(f"{self.uri}/health", timeout=1).close()
            return True
        except OSError:
            return False

    def kill(self) -> None:
        """The server and the child that answers for it: a session of their own."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def server(place: Place) -> Iterator[Server]:
    server = Server(place)
    yield server
    if server.process.poll() is None:
        server.kill()


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, Callable[[], Any]], None]:
    """Has something done once a trial has been evaluated at a step, and the search go on afterwards."""
    real = Display.evaluated

    def arm(name: str, step: int, act: Callable[[], Any]) -> None:
        before = Display.evaluated

        def evaluated(self: Display, trial: str, row: dict[str, float]) -> None:
            before(self, trial, row)
            if (trial, row["step"]) == (name, step):
                act()

        monkeypatch.setattr(Display, "evaluated", evaluated)

    yield arm
    monkeypatch.setattr(Display, "evaluated", real)


def assert_told_once(place: Place, uri: str) -> None:
    """Each trial has one run, with each point of its curves and of the study's once, and one model."""
    from sweeps.connect import open_client

    client = open_client(uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    by_name = {run.data.tags.get("sweep.trial", "the study"): run for run in runs}
    trials = [place.trial("base"), place.trial("default"), *place.trials()]
    assert Counter(run.data.tags.get("sweep.trial", "the study") for run in runs) == Counter(
        ["the study", *(trial.name for trial in trials)]
    )
    for trial in trials:
        run, rows = by_name[trial.name], load_metrics(place.folder() / trial.name)
        for curve in CURVES:
            points = client.get_metric_history(run.info.run_id, curve)
            assert [(p.step, p.value) for p in points] == [(r["step"], r[curve]) for r in rows if curve in r]
        assert run.info.status == {"complete": "FINISHED", "pruned": "KILLED"}[trial.state]
        assert run.data.metrics["best_val_loss"] == trial.value
        assert len(client.get_metric_history(run.info.run_id, "final_val_loss")) == 1
        models = run.outputs.model_outputs if run.outputs else []
        assert len(models) == (1 if trial.adapter and trial.state == "complete" else 0)
    told = client.get_metric_history(by_name["the study"].info.run_id, "study/trial_value")
    complete = [trial for trial in place.trials() if trial.state == "complete"]
    assert sorted((p.step, p.value) for p in told) == [(trial.number, trial.value) for trial in complete]


@tried("MLflow's server killed, and brought back")
def test_the_server_is_killed_and_comes_back_during_the_search(
    place: Place, server: Server, at: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(telling, "PAUSE", 0.2)
    at("trial-0001", 4, server.kill)
    at("trial-0002", 4, lambda: time.sleep(10))  # MLflow's client itself tries for some seconds
    at("trial-0003", 4, server.start)
    # Time for another try before the end.
    at("trial-0004", 4, lambda: time.sleep(5))
    assert quick(place, "trainer.slots=1", f"tracking.uri={server.uri}") == 0
    printed = capsys.readouterr().out
    assert printed.count("could not be told everything") == 1
    assert printed.count("MLflow answers again") == 1
    assert_told_once(place, server.uri)


@tried("MLflow's server killed, and brought back")
def test_sync_fills_in_what_a_server_missed(
    place: Place, server: Server, at: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    at("trial-0001", 4, server.kill)
    assert quick(place, "trainer.slots=1", f"tracking.uri={server.uri}", "n_trials=4") == 0
    printed = capsys.readouterr().out
    assert "lora-sweep sync s --output-dir" in printed and "wins with" in printed
    command = ["sync", "s", "--output-dir", str(place.root / "outputs")]
    assert main(command) == 2
    assert "no MLflow server answers" in capsys.readouterr().err

    server.start()
    assert main(command) == 0
    # Three at least; those before them, base and first trial, if the telling was behind.
    assert re.search(r"[345] trials brought up to date", capsys.readouterr().out)
    assert_told_once(place, server.uri)
    assert main(command) == 0
    assert "nothing was missing" in capsys.readouterr().out
    assert_told_once(place, server.uri)
    assert not [note for note in place.record().notes if "could not be told" in note]


def until(holds: Callable[[], bool]) -> float:
    """Waits until something holds; returns when that was."""
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
    return time.monotonic()


@tried("MLflow's database locked")
def test_the_next_start_fills_in_what_a_locked_database_missed(place: Place) -> None:
    """MLflow's own patience with a lock is 20 s; the search must not wait for as long. It is a process of its own, so
    that nothing of it goes on telling once it has ended."""
    search = place.start(*place.search_arguments("trainer.slots=1", "n_trials=4"))
    until(lambda: has_ended(place.folder() / "trial-0000"))
    lock = sqlite3.connect(place.root / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    locked = time.monotonic()
    trained = until(lambda: has_ended(place.folder() / "trial-0003"))
    printed, _ = search.communicate(timeout=telling.STALLED + 60)
    over = time.monotonic()
    lock.execute("ROLLBACK")
    lock.close()
    assert trained - locked < 15, "the search has waited for MLflow"
    assert over - trained < telling.STALLED + 30
    assert search.returncode == 0 and "lora-sweep sync s" in printed
    assert quick(place, "trainer.slots=1", "n_trials=4") == 0
    assert_told_once(place, f"sqlite:///{place.root}/mlflow.db")


def test_a_slow_store_does_not_slow_the_search(place: Place, at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow answers nothing until the last trial is over."""
    real, told, answers = TrialRun.log, [], threading.Event()

    def slow(self: TrialRun, row: dict[str, float]) -> None:
        answers.wait(120)
        real(self, row)
        told.append(row["step"])

    monkeypatch.setattr(TrialRun, "log", slow)
    told_by_then: list[int] = []
    at("trial-0003", 8, lambda: (told_by_then.append(len(told)), answers.set()))
    assert quick(place, "trainer.slots=1", "n_trials=4") == 0
    assert told_by_then == [0]
    assert_told_once(place, f"sqlite:///{place.root}/mlflow.db")


@pytest.mark.parametrize(("carries", "says"), [(True, None), (False, "it does not answer")])
def test_what_takes_long_at_the_end(monkeypatch: pytest.MonkeyPatch, carries: bool, says: str | None) -> None:
    """A large adapter may; anything else means that the store has stalled."""
    monkeypatch.setattr(telling, "STALLED", 0.2)
    monkeypatch.setattr(telling, "command_on", lambda *given: "")
    store, record = SimpleNamespace(carries_files=carries), StudyRecord("s")
    tracker = SimpleNamespace(store=store, problem=None, folder=Path())
    tracker.prepare = tracker.open_run = lambda *given: None
    tracker.close_study = lambda *given: time.sleep(1)
    teller = telling.Teller(tracker, print)  # type: ignore[arg-type]
    teller.open_study(record, Path())
    problem = teller.close_study(record, "complete", None)
    assert problem is None if says is None else says in (problem or "")


@pytest.mark.parametrize("state", ["complete", "interrupted"])
def test_one_that_leads_no_more_tells_nothing(state: str) -> None:
    """Also before it notices: what it tells, or ends, is another's."""
    called: list[str] = []

    class Told(SimpleNamespace):
        def __getattr__(self, name: str) -> Any:
            return lambda *given: called.append(name)

    leads = [True]
    teller = telling.Teller(Told(problem=None, folder=Path()), print, lambda: leads[0])  # type: ignore[arg-type]
    teller.open_study(StudyRecord("s"), Path())
    for _ in range(2):
        teller.end_trial(TrialRecord("trial-0000", "trial"))
        teller.settle(10)
        leads[0] = False
    assert called == ["prepare", "open_run", "end_trial"]
    teller.tracker.problem = "it is away"
    teller._try_again()
    assert "recover" not in called
    teller.tracker.problem = None
    teller.close_study(StudyRecord("s"), state, None)
    assert called[3:] == ["give_way"]


def test_files_and_folders_are_known_to_be_on_their_way(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"sqlite:///{place.root}/mlflow.db", "tests")
    during: list[bool] = []
    for name in ("log_artifact", "log_artifacts"):
        monkeypatch.setattr(store.client, name, lambda *_: during.append(store.carries_files))
    store.add_file("run", place.root / "file", "adapters")
    store.add_folder("run", place.root, "report")
    assert during == [True, True] and not store.carries_files


def test_a_bug_in_the_telling_is_not_taken_for_a_store_that_is_gone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(TrialRun, "log", broken)
    with pytest.raises(ZeroDivisionError):
        quick(place, "n_trials=4")


def test_a_single_run_is_told_later_too(place: Place, server: Server, at: Any) -> None:
    from sweeps.connect import open_client

    at("one", 4, server.kill)
    assert main(["train", *place.arguments("study=one", f"tracking.uri={server.uri}")]) == 0
    server.start()
    assert main(["sync", "train/one", "--output-dir", str(place.root / "outputs")]) == 0
    client = open_client(server.uri)
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    rows = load_metrics(place.folder("train/one"))
    points = client.get_metric_history(run.info.run_id, "val_loss")
    assert [(p.step, p.value) for p in points] == [(row["step"], row["val_loss"]) for row in rows]
    assert run.info.status == "FINISHED"


def test_sync_of_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", "no-such", "--output-dir", str(place.root / "outputs")]) == 2
    assert len(capsys.readouterr().err.splitlines()) <= 3
