"""Searches that share a study through PostgreSQL: processes here, machines elsewhere."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from lora_core.records import load_metrics
from sweeps.cli import main
from tests import postgres
from tests.sweeps.helpers import Place
from tests.sweeps.test_search import alive, mlflow_runs, wait_for

N = 6
GRACE = 3


class Machines:
    """Processes that are given the same command, with trials that take seconds and do not depend on each other."""

    def __init__(self, place: Place, database: str) -> None:
        self.place = place
        self.database = database
        self.running: list[subprocess.Popen] = []
        self.seen: dict[str, float | None] = {}

    def arguments(self, *more: str) -> list[str]:
        settings = [f"n_trials={N}", f"cluster.grace={GRACE}", f"storage={self.database}", "trainer.iters=120"]
        settings += ["trainer.slots=1", "search/sampler=random", "search/pruner=none", *more]
        return [word for word in self.place.search_arguments(*settings) if not word.startswith("search.pruner.")]

    def start(self, *more: str) -> subprocess.Popen:
        self.running.append(self.place.start(*self.arguments(*more)))
        return self.running[-1]

    def start_two(self) -> tuple[subprocess.Popen, subprocess.Popen]:
        """Two that have begun a trial each: the one that leads, and the one that has joined it."""
        both = self.start(), self.start()
        wait_for(lambda: len(self._owners()) == 2 or any(process.poll() is not None for process in both))
        attributes = self.study.user_attrs
        where, _ = attributes[f"process {attributes['lead']}"]
        leads, joins = sorted(both, key=lambda process: not where.endswith(f"process {process.pid}"))
        assert where.endswith(f"process {leads.pid}")
        return leads, joins

    @property
    def study(self) -> optuna.Study:
        return optuna.load_study(study_name="s", storage=self.database)

    def _owners(self) -> set[str]:
        """The processes that have begun trials."""
        if not self.place.folder().exists():
            return set()
        return {trial.user_attrs["process"] for trial in self.study.trials if "process" in trial.user_attrs}

    def finish(self, *dead: subprocess.Popen) -> dict[subprocess.Popen, str]:
        """Waits for those that live, while nothing that has ended is taken back; returns what each has printed."""
        living = [process for process in self.running if process not in dead]
        wait_for(lambda: self._look() and all(process.poll() is not None for process in living))
        said = {process: process.communicate() for process in living}
        for process, (_, error) in said.items():
            assert process.returncode == 0, error[-2000:]
        return {process: out for process, (out, _) in said.items()}

    def _look(self) -> bool:
        folder = self.place.folder()
        ended = {t.name: t.value for t in self.place.trials() if t.state != "running"} if folder.exists() else {}
        assert self.seen.items() <= ended.items(), "progress went back"
        self.seen = ended
        return True


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Several that take all cores each would mostly wait for one another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("MKL_NUM_THREADS", "1")
        yield


@pytest.fixture
def machines(tmp_path: Path, database: str) -> Iterator[Machines]:
    there = Machines(Place(tmp_path), database)
    yield there
    for process in there.running:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[tuple]:
    """The results of one process that has no company."""
    place = Place(tmp_path_factory.mktemp("alone"))
    assert main(Machines(place, f"sqlite:///{place.root}/optuna.db").arguments()) == 0
    return place.results()


def check(machines: Machines, alone: list[tuple]) -> None:
    """Every number once, every trial as it is without company, and the study at its end, in all three places."""
    place = machines.place
    assert place.results() == alone
    assert place.record().state == "complete"
    trials = machines.study.trials
    assert [trial.number for trial in trials] == list(range(N))
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    runs = mlflow_runs(place)
    assert runs.keys() == {"study", "base", "default", *(f"trial-{number:04d}" for number in range(N))}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for number in range(N):
        curve = [row["step"] for row in load_metrics(place.folder() / f"trial-{number:04d}")]
        assert curve == sorted(set(curve))


@pytest.mark.slow
def test_two_machines(machines: Machines, alone: list[tuple]) -> None:
    leads, joins = machines.start_two()
    said = machines.finish()
    led, joined = said[leads], said[joins]
    assert "wins with" in led
    assert "led by" in joined and "The process that leads writes the report" in joined and "wins with" not in joined
    for out in (led, joined):  # each shows what the other has done too
        assert all(f"trial-{number:04d}" in out for number in range(N))
    check(machines, alone)


@pytest.mark.slow
def test_what_cannot_join(machines: Machines, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    machines.start_two()
    assert main(machines.arguments(f"output_dir={tmp_path}/elsewhere")) == 2
    said = capsys.readouterr().err
    assert f"but not in {tmp_path}/elsewhere/s" in said and "share its output_dir=" in said
    assert not (tmp_path / "elsewhere").exists()
    assert main(machines.arguments("n_trials=99")) == 2
    assert f"with n_trials={N}" in capsys.readouterr().err
    assert main(machines.arguments("lora_parameters.rank=2,8")) == 2
    assert "exists with other settings" in capsys.readouterr().err
    machines.finish()


@pytest.mark.faults
@pytest.mark.parametrize("who", ["the one that leads", "the one that joined"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_one_of_two_ends(machines: Machines, alone: list[tuple], who: str, number: int) -> None:
    leads, joins = machines.start_two()
    dead = leads if who == "the one that leads" else joins
    dead.send_signal(number)
    (out,) = machines.finish(dead).values()
    assert "wins with" in out
    assert ("This one leads it now" in out) == (dead is leads)
    check(machines, alone)


@pytest.mark.faults
def test_the_database_restarts(machines: Machines, alone: list[tuple], postgres_server: postgres.Server) -> None:
    machines.start_two()
    postgres_server.stop()
    time.sleep(2 * GRACE)  # nobody is taken for gone meanwhile
    postgres_server.start()
    out = "".join(machines.finish().values())
    assert "does not answer" in out and "gone" not in out and "taken over" not in out
    check(machines, alone)


@pytest.mark.faults
@pytest.mark.parametrize("who", ["the one that leads", "the one that joined"])
def test_one_of_two_sleeps(machines: Machines, alone: list[tuple], who: str) -> None:
    leads, joins = machines.start_two()
    sleeper = leads if who == "the one that leads" else joins
    both = [sleeper.pid, *map(int, children(sleeper))]
    for process in both:
        signal_to(process, signal.SIGSTOP)
    time.sleep(3 * GRACE)
    for process in both:
        signal_to(process, signal.SIGCONT)
    out = "".join(machines.finish().values())
    assert "taken over trials of this one" in out
    assert ("Another process leads the study now" in out) == (sleeper is leads)
    check(machines, alone)


def children(process: subprocess.Popen) -> list[str]:
    return subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()


def signal_to(process: int, number: int) -> None:
    subprocess.run(["kill", f"-{signal.Signals(number).name.removeprefix('SIG')}", str(process)], check=True)


@pytest.mark.faults
def test_all_end_and_the_command_goes_on(machines: Machines, alone: list[tuple]) -> None:
    both = machines.start_two()
    trainers = [int(child) for process in both for child in children(process)]
    for process in both:
        process.kill()
    wait_for(lambda: not any(map(alive, trainers)))
    machines.start()
    (out,) = machines.finish(*both).values()
    assert "wins with" in out
    check(machines, alone)
