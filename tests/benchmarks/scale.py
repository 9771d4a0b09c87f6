"""Many processes at one study in PostgreSQL, whose trials cost nothing: how many trials a second the rest allows.

    python -m tests.benchmarks.scale [--workers 64] [--trials 2000] [--sampler tpe]

Each process asks, reports three evaluations, which the pruner judges, and tells, as a search does that trains.
"""

import argparse
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import optuna

from lora_core.records import TrialRecord
from sweeps.axes import Axis
from sweeps.config import SearchConfig, SweepConfig
from sweeps.storage import opening_shared
from sweeps.study import Evaluation, Proposal, Study
from tests import postgres

AXES = [
    Axis("optimizer.learning_rate", "float", low=1e-5, high=1e-3, log=True),
    Axis("lora_parameters.rank", "categorical", choices=[4, 8, 16, 32]),
    Axis("lora_parameters.scale_ratio", "float", low=0.5, high=8, log=True),
]
EVALUATIONS = 3


@dataclass
class Worker:
    """What one process has done. Seconds: waiting for its turn to ask, having it, and in all else that it asks of the
    database."""

    numbers: list[int] = field(default_factory=list)
    waited: float = 0.0
    had: float = 0.0
    told: float = 0.0

    def work(self, config: SweepConfig) -> None:
        with opening_shared(config.storage):
            study = Study("scale", config, AXES, {}, steps=EVALUATIONS)
        self._watch(study)
        while (proposal := study.ask()) is not None:
            began = time.perf_counter()
            self._train(study, proposal)
            self.told += time.perf_counter() - began
            self.numbers.append(proposal.number)
        study.crew.leave()

    def _train(self, study: Study, proposal: Proposal) -> None:
        state, loss = "complete", 0.0
        for step in range(1, EVALUATIONS + 1):
            loss = (proposal.number * 0.618) % 1 + 1 / step
            if study.judge([Evaluation(proposal.number, step, loss)]):
                state = "pruned"
                break
        name = f"trial-{proposal.number:04d}"
        study.tell(TrialRecord(name, "trial", state, proposal.number, metrics={"best_val_loss": loss}))

    def _watch(self, study: Study) -> None:
        real = study.crew.alone

        @contextmanager
        def timed() -> Iterator[None]:
            began = time.perf_counter()
            with real():
                begins = time.perf_counter()
                yield
                self.had += time.perf_counter() - begins
            self.waited += begins - began

        study.crew.alone = timed  # type: ignore[method-assign]


def _process(config: SweepConfig) -> Worker:
    worker = Worker()
    worker.work(config)
    return worker


def run(config: SweepConfig, workers: int) -> tuple[list[Worker], float]:
    """All of them at once; returns what each has done, and the seconds from the first start to the last end."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fork = multiprocessing.get_context("fork")  # imports are paid once
    began = time.perf_counter()
    with ProcessPoolExecutor(workers, fork) as processes:
        done = list(processes.map(_process, [config] * workers))
    return done, time.perf_counter() - began


def table(config: SweepConfig, done: list[Worker], seconds: float) -> list[str]:
    """What came of it. Raises AssertionError if a trial was lost or done twice."""
    counts = Counter(number for worker in done for number in worker.numbers)
    trials = optuna.load_study(study_name="scale", storage=config.storage).trials
    assert sorted(counts) == list(range(config.n_trials)), "lost"
    assert set(counts.values()) == {1}, "done twice"
    assert [trial.number for trial in trials] == list(range(config.n_trials)), "numbers"
    assert all(trial.state.is_finished() for trial in trials), "not told"
    had, waited, told = (sum(getattr(worker, name) for worker in done) for name in ("had", "waited", "told"))
    n, states = config.n_trials, Counter(trial.state.name.lower() for trial in trials)
    return [
        f"{len(done)} processes on {os.cpu_count()} cores with their PostgreSQL, sampler "
        f"{config.search.sampler['name']}, pruner {config.search.pruner['name']}",
        f"  trials                        {n} ({', '.join(f'{count} {name}' for name, count in states.items())})",
        "  lost, done twice              0, 0",
        f"  a process did                 {min(len(w.numbers) for w in done)} to {max(len(w.numbers) for w in done)}",
        f"  trials/s                      {n / seconds:.1f}, which keeps all busy with trials of "
        f"{len(done) * seconds / n:.0f} s and more",
        f"  asking, one at a time         {1000 * had / n:.0f} ms a trial, {100 * had / seconds:.0f} % of the time",
        f"  waiting for the turn to ask   {1000 * waited / n:.0f} ms a trial",
        f"  evaluations and the end       {1000 * told / n:.0f} ms a trial, {told / seconds:.1f} at a time on average",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale", description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--pruner", default="median")
    given = parser.parse_args()
    programs = postgres.programs()
    if programs is None:
        parser.error("PostgreSQL is not installed")
    search = SearchConfig(sampler={"name": given.sampler}, pruner={"name": given.pruner})
    with postgres.server(programs) as server:
        config = SweepConfig(storage=server.database("scale"), n_trials=given.trials, search=search)
        print("\n".join(table(config, *run(config, given.workers))))


if __name__ == "__main__":
    main()
