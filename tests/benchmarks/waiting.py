"""How long the training process waits for the program around it: Optuna, MLflow, records, display.

    python -m tests.benchmarks.waiting model=tiny n_trials=16 trainer.iters=32 trainer.eval_every=8

The arguments are those of `lora-sweep search`; it runs in a temporary folder. Between a report of the training process
and the answer to it nothing is trained; that time is shown for each trial and as a share of the training time.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lora_core.records import load_trials
from sweeps import search
from sweeps.client import Worker
from sweeps.protocol import Go, Report
from sweeps.space import make_job


class Watched(Worker):
    """A worker whose waiting is counted, in seconds."""

    waited = 0.0
    _since: float | None = None

    def report(self) -> Report:
        report = super().report()
        self._since = time.perf_counter()
        return report

    def send(self, message: Any) -> None:
        if isinstance(message, Go) and self._since is not None:
            Watched.waited += time.perf_counter() - self._since
        self._since = None
        super().send(message)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        search.Worker = Watched  # type: ignore[misc]
        search.run(make_job([*sys.argv[1:], "study=waiting"]))
        trials = [record for record in load_trials(Path("outputs/waiting")) if record.role != "base"]
    training = sum(record.metrics["train_seconds"] for record in trials)
    found = {
        "trials": len(trials), "training seconds": round(training, 2), "waiting seconds": round(Watched.waited, 2),
        "waiting ms a trial": round(1000 * Watched.waited / len(trials), 1),
        "waiting share of training": round(Watched.waited / training, 4),
    }  # fmt: skip
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
