"""Processes that share a study through PostgreSQL, as machines do, in one folder or each in one of its own."""

import subprocess

import optuna
from optuna.trial import TrialState

from lora_core.records import adapter_damage, load_metrics
from tests.sweeps.helpers import Place
from tests.sweeps.test_search import mlflow_runs, wait_for
from tests.sweeps.test_telling import Server

N = 6
GRACE = 3
EVERY = 20  # steps between evaluations


class Machines:
    """Processes that are given the same command, with trials that take seconds and do not depend on each other."""

    def __init__(self, place: Place, database: str) -> None:
        self.place = place
        self.database = database
        self.running: list[subprocess.Popen] = []
        self.seen: dict[str, float | None] = {}

    def arguments(self, *more: str) -> list[str]:
        settings = [f"n_trials={N}", f"cluster.grace={GRACE}", f"storage={self.database}"]
        settings += ["trainer.iters=120", f"trainer.eval_every={EVERY}", "trainer.slots=1"]
        return self.place.search_arguments(*settings, "search/sampler=random", "search/pruner=none", *more)

    def start(self, *more: str, module: str = "sweeps") -> subprocess.Popen:
        self.running.append(self.place.start(*self.arguments(*more), module=module))
        return self.running[-1]

    def folder(self, process: subprocess.Popen) -> str:
        """Where it keeps the study, below the outputs."""
        return "s"

    @property
    def leads(self) -> subprocess.Popen:
        """The process that leads, or has led last."""
        attributes = self.study.user_attrs
        where, _ = attributes[f"process {attributes['lead']}"]
        (process,) = (process for process in self.running if where.endswith(f"process {process.pid}"))
        return process

    def works(self, process: subprocess.Popen) -> bool:
        """Whether the study takes it for one that is at work on a trial."""
        attributes, running = self.study.user_attrs, self.study.get_trials(states=(TrialState.RUNNING,))
        owners = [attributes[f"process {trial.user_attrs['process']}"] for trial in running]
        return any(where.endswith(f"process {process.pid}") for where, _ in owners)

    def start_two(self) -> tuple[subprocess.Popen, subprocess.Popen]:
        """Two that have begun a trial each: the one that leads, and the one that has joined it."""
        both = self.start(), self.start()
        wait_for(lambda: len(self.owners()) == 2 or any(process.poll() is not None for process in both))
        leads = self.leads
        (joins,) = (process for process in both if process is not leads)
        return leads, joins

    @property
    def study(self) -> optuna.Study:
        return optuna.load_study(study_name="s", storage=self.database)

    def owners(self) -> set[str]:
        """The processes that have begun trials."""
        if not (self.place.root / "outputs").exists():
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

    def end(self) -> None:
        for process in self.running:
            process.kill()
            process.communicate()

    def _look(self) -> bool:
        folder = self.place.folder()
        ended = {t.name: t.value for t in self.place.trials() if t.state != "running"} if folder.exists() else {}
        assert self.seen.items() <= ended.items(), "progress went back"
        self.seen = ended
        return True


class Apart(Machines):
    """Each with a folder of its own; an MLflow server carries what they train."""

    def __init__(self, place: Place, database: str, server: Server) -> None:
        super().__init__(place, database)
        self.server = server

    def arguments(self, *more: str) -> list[str]:
        own = f"output_dir={self.place.root}/outputs/machine{len(self.running)}"
        return super().arguments("cluster.shared_folder=false", f"tracking.uri={self.server.uri}", own, *more)

    def folder(self, process: subprocess.Popen) -> str:
        return f"machine{self.running.index(process)}/s"

    def end(self) -> None:
        super().end()
        if self.server.process.poll() is None:
            self.server.kill()

    def _look(self) -> bool:
        return True


def check(machines: Machines, alone: list[tuple], folder: str | None = None) -> None:
    """Every number once, every trial as it is without company, and the study at its end, in all three places. `folder`:
    of the one that leads, where that is no process of `machines`."""
    place, folder = machines.place, folder or machines.folder(machines.leads)
    assert place.results(folder) == alone
    assert place.record(folder).state == "complete"
    for trial in place.trials(folder):  # whoever has trained it
        adapter = place.folder(folder) / trial.name / "adapters"
        assert trial.adapter == str(adapter) and adapter_damage(trial, adapter) is None
    trials = machines.study.trials
    assert [trial.number for trial in trials] == list(range(N))
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    runs = mlflow_runs(place)
    assert runs.keys() == {"study", "base", "default", *(f"trial-{number:04d}" for number in range(N))}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for number in range(N):
        curve = [row["step"] for row in load_metrics(place.folder(folder) / f"trial-{number:04d}")]
        assert curve == sorted(set(curve))
