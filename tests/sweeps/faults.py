"""A search that is disturbed, and the four things that must hold all the same: no trial that has ended is lost, the
numbers are exactly 0…N−1, progress never goes back, and the study ends at its total."""

import subprocess
import time
from dataclasses import dataclass, field

import optuna

from lora_core.records import TrialRecord, load_metrics, load_trials
from sweeps.connect import open_client
from tests.fault_table import Row
from tests.sweeps.helpers import Place

# Trials that do not learn from one another: each gives the same, whatever has happened to the others.
INDEPENDENT = ("search/sampler=random", "search/pruner=none")
INDEPENDENT += ("trainer.slots=2", "trainer.iters=32", "trainer.eval_every=8")
FINISHED = 0


@dataclass
class Disturbed:
    """A search in a process of its own. At each look, every trial that has ended must be as it was when it ended."""

    place: Place
    row: Row
    total: int = 6
    more: list[str] = field(default_factory=list)
    ended: dict[str, tuple] = field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        return self.place.search_arguments(*INDEPENDENT, f"n_trials={self.total}", *self.more)

    def start(self) -> subprocess.Popen:
        self.process = self.place.start(*self.arguments)
        return self.process

    def look(self) -> list[TrialRecord]:
        """Checks that nothing has gone back; returns the trials that are running."""
        trials = load_trials(self.place.folder()) if self.place.folder().exists() else []
        now = {trial.name: outcome(trial) for trial in trials if trial.state != "running"}
        lost = [name for name, found in self.ended.items() if now.get(name) != found]
        self.row.lost += len(lost)
        assert not lost, {name: (self.ended[name], now.get(name)) for name in lost}
        self.ended = now
        return [trial for trial in trials if trial.state == "running"]

    def wait(self, seconds: float) -> bool:
        """Looks on for so long; returns whether the search still runs."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            self.look()
            time.sleep(0.05)
        return self.process.poll() is None

    def worker(self) -> int | None:
        """The id of the training process, if there is one."""
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout.split()
        return int(found[0]) if found else None

    def over(self) -> str:
        """Waits until the process has ended; returns what it said of errors, which is never a traceback."""
        while self.wait(600):
            pass
        _, said = self.process.communicate()
        assert "Traceback" not in said, said
        self.look()
        return said

    def finish(self) -> None:
        """Starts it again and again, as a user would, until it says that it is done."""
        for _ in range(20):
            self.start()
            self.over()
            if self.process.returncode == FINISHED:
                break
        assert_whole(self.place, self.total)


def outcome(trial: TrialRecord) -> tuple:
    return trial.state, trial.params, trial.value, trial.step, trial.adapter_sha256


def assert_whole(place: Place, total: int) -> None:
    """Optuna, MLflow and the disk have each trial once, with one whole curve, and the study is complete."""
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{place.root}/optuna.db")
    assert [trial.number for trial in study.trials] == list(range(total))
    assert all(trial.state.is_finished() for trial in study.trials)
    trials = place.trials()
    assert [trial.number for trial in trials] == list(range(total))
    assert place.record().state == "complete" and not [t for t in trials if t.state == "running"]
    for trial in trials:
        steps = [row["step"] for row in load_metrics(place.folder() / trial.name)]
        assert steps == sorted(set(steps))
    client = open_client(f"sqlite:///{place.root}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert not [run for run in runs if run.info.status == "RUNNING"]
    counted = [run.data.tags["sweep.trial"] for run in runs if run.data.tags["sweep.role"] in ("trial", "default")]
    assert sorted(counted) == ["default", *(f"trial-{number:04d}" for number in range(total))]
    attempts = [run for run in runs if run.data.tags["sweep.role"] == "attempt"]
    assert {run.info.status for run in attempts} <= {"KILLED"}
