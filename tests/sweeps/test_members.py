"""Several workers on one machine: the cores or cards each of them gets, and that nothing else comes of it."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import optuna
import pytest

from lora_core import backend
from lora_core.errors import UserError
from sweeps import members
from sweeps.cli import main
from sweeps.display import Display
from tests.sweeps.helpers import Place
from tests.sweeps.test_search import alive, mlflow_runs, wait_for

MORE_THAN_ONE_CORE = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two cores")


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "has_cuda", lambda: False)
    monkeypatch.setattr(backend.sys, "platform", "linux")
    monkeypatch.setattr(backend.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.fixture
def cuda(no_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "has_cuda", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")


def test_cores_are_split(no_cuda: None) -> None:
    assert backend.shares(1) == [{}]
    assert backend.shares(3) == [{"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}] * 3
    with pytest.raises(UserError, match=r"cluster.workers=9: there are 8 CPU cores\."):
        backend.shares(9)


def test_a_card_each(cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.shares(2) == [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    with pytest.raises(UserError, match=r"cluster.workers=3: there are 2 CUDA devices\. Two workers on one"):
        backend.shares(3)
    listed = subprocess.CompletedProcess([], 0, "GPU 0: NVIDIA H100\nGPU 1: NVIDIA H100\nGPU 2: NVIDIA H100\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(backend.subprocess, "run", lambda *_, **__: listed)
    assert [share["CUDA_VISIBLE_DEVICES"] for share in backend.shares(3)] == ["0", "1", "2"]


def test_a_mac_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.sys, "platform", "darwin")
    with pytest.raises(UserError, match=r"cluster.workers=2: a Mac has one GPU\. .* trainer.slots"):
        backend.shares(2)


def arguments(place: Place, *more: str) -> list[str]:
    settings = ["n_trials=6", "trainer.slots=1", "trainer.iters=80", "trainer.eval_every=20"]
    settings += ["search/sampler=random", "search/pruner=none"]
    return place.search_arguments(*settings, *more)


def processes(place: Place) -> set[str]:
    """Those that have run trials."""
    trials = optuna.load_study(study_name="s", storage=f"sqlite:///{place.root}/optuna.db").trials
    return {trial.user_attrs.get("process", "") for trial in trials}


@MORE_THAN_ONE_CORE
@pytest.mark.slow
def test_two_workers_give_what_one_gives(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    one, two = Place(tmp_path_factory.mktemp("one")), Place(tmp_path)
    assert main(arguments(one)) == 0
    capfd.readouterr()
    assert main(arguments(two, "cluster.workers=2", "search.confirm.k=1", "search.confirm.repeats=1")) == 0
    printed, said = capfd.readouterr()
    assert len(processes(one)) == 1 and len(processes(two)) == 2
    assert [result for result in two.results() if not result[0].startswith("confirm")] == one.results()
    assert all(printed.count(f"\ntrial-{number:04d}  ") == 1 for number in range(6)) and not said
    assert {run.info.status for run in mlflow_runs(two).values()} == {"FINISHED"}
    assert two.record().state == "complete"


@MORE_THAN_ONE_CORE
@pytest.mark.faults
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_both_end_with_the_first(tmp_path: Path, number: int, code: int) -> None:
    """However it ends; what they had begun is there to go on with."""
    place = Place(tmp_path)
    parent = place.start(*arguments(place, "cluster.workers=2", "trainer.iters=2000"))
    reach_two(place, parent)
    members = children(parent.pid)
    assert len(members) == 2  # the trainer and the member
    everyone = [*members, *(each for member in members for each in children(member))]
    parent.send_signal(number)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == code and "Traceback" not in said
    wait_for(lambda: not any(map(alive, everyone)), 60)
    assert [(trial.name, trial.state) for trial in place.trials()] == [("trial-0000", "running")]


@MORE_THAN_ONE_CORE
@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_dies_or_hangs_holds_up_nobody(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, started, struck = Place(tmp_path), list[subprocess.Popen](), list[str]()
    real_start, real_evaluated = members._start, Display.evaluated

    def start(*given: Any) -> subprocess.Popen:
        started.append(real_start(*given))
        return started[-1]

    def evaluated(self: Display, trial: str, row: dict[str, float]) -> None:
        real_evaluated(self, trial, row)
        if not struck and len(processes(place)) == 2:  # of which one is the other worker's
            started[0].send_signal(number)
            struck.append(trial)

    monkeypatch.setattr(members, "_start", start)
    monkeypatch.setattr(members, "PATIENCE", 5.0)
    monkeypatch.setattr(Display, "evaluated", evaluated)
    assert main(arguments(place, "cluster.workers=2", "cluster.grace=1", "trainer.iters=120")) == 0
    assert "A worker ended early" in capsys.readouterr().out
    assert [trial.state for trial in place.trials()] == ["complete"] * 6
    assert place.record().state == "complete"


def reach_two(place: Place, parent: subprocess.Popen) -> None:
    """One of the two has begun with the default settings, the other with a trial."""
    curves = [place.folder() / name / "metrics.jsonl" for name in ("default", "trial-0000")]
    wait_for(lambda: all(curve.exists() for curve in curves) or parent.poll() is not None)


def children(process: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True).stdout
    return [int(word) for word in found.split()]
