"""`lora-sweep stop`, with a search in a process of its own."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.cli import main
from sweeps.requests import STOPPED, ask_to_stop, forget_requests, read_request
from tests.sweeps.helpers import Place, quick
from tests.sweeps.test_search import alive, mlflow_runs, reach, wait_for

pytestmark = pytest.mark.faults


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def search(place: Place) -> Iterator[subprocess.Popen]:
    """Trials of many steps and evaluations, one after the other, without a pruner."""
    long = ["trainer.iters=400", "trainer.slots=1", "search/pruner=none", "n_trials=50"]
    process = place.start(*place.search_arguments(*long))
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def stop(place: Place, *words: str) -> int:
    return main(["stop", *words, "--output-dir", str(place.root / "outputs")])


def test_a_trial_then_the_study(place: Place, search: subprocess.Popen, capsys: pytest.CaptureFixture[str]) -> None:
    child = reach(place, "trial-0000", search)
    wait_for(lambda: (place.folder() / "trial-0000" / "metrics.jsonl").exists())
    assert stop(place, "s", "trial-0000") == 0
    assert "trial-0000 has ended at step" in capsys.readouterr().out
    stopped = place.trial("trial-0000")
    assert (stopped.state, stopped.reason) == ("pruned", STOPPED)
    assert 0 < stopped.step < 400 and stopped.adapter is not None
    assert (Path(stopped.adapter) / "adapters.safetensors").exists()

    reach(place, "trial-0001", search)
    assert stop(place, "s", "trial-0000") == 2
    said = capsys.readouterr().err
    assert "trial-0000 is not a running trial of s (pruned)" in said and "trial-0001" in said

    assert stop(place, "s") == 0
    printed = capsys.readouterr().out
    assert "s has stopped: 1 of 50 trials ended" in printed and "study=s" in printed
    _, said = search.communicate(timeout=60)
    assert search.returncode == 130
    assert "Resume with" in said and "Traceback" not in said
    assert not alive(child)
    assert place.record().state == "interrupted"
    assert mlflow_runs(place)["trial-0000"].data.tags["sweep.reason"] == STOPPED

    assert stop(place, "s") == 2
    assert "No process is at work on s" in capsys.readouterr().err
    assert not (place.folder() / "stop.json").exists()


def test_a_single_run(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    process = place.start("train", *place.arguments("study=one", "trainer.iters=4000"))
    folder = place.folder("train/one")
    wait_for(lambda: (folder / "metrics.jsonl").exists() or process.poll() is not None)
    assert stop(place, "train/one", "one") == 2
    assert "single run" in capsys.readouterr().err
    assert stop(place, "train/one") == 0
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert "0 of 1 trial ended" in capsys.readouterr().out
    assert place.record("train/one").state == "interrupted"


def test_a_request_is_for_the_process_at_work_only(place: Place) -> None:
    """One that came too late must not end the next start."""
    place.folder().mkdir(parents=True)
    ask_to_stop(place.folder(), None)
    assert quick(place, "n_trials=1") == 0


def test_requests_add_up_until_they_are_forgotten(tmp_path: Path) -> None:
    assert read_request(tmp_path) is None
    for trial in ("trial-0001", "trial-0002", "trial-0001", None):
        ask_to_stop(tmp_path, trial)
    for _ in range(2):  # several processes read it
        request = read_request(tmp_path)
        assert request is not None
        assert (request.trials, request.study) == (["trial-0001", "trial-0002"], True)
    forget_requests(tmp_path)
    assert read_request(tmp_path) is None


def test_unknown_names(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert stop(place, "s") == 2
    assert "holds no studies" in capsys.readouterr().err
