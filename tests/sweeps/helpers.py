"""Runs of the command line on the tiny model with a few rows, in this process or in one of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from lora_core.records import StudyRecord, TrialRecord, load_study, load_trial
from reports.study import load
from sweeps.cli import main

ROOT = Path(__file__).parents[2]
RATE = "optimizer.learning_rate=tag(log,interval(1e-3,1e-1))"
RANK = "lora_parameters.rank=2,4"


def write_data(folder: Path, rows: int = 12) -> Path:
    """A folder of train.jsonl and valid.jsonl; its rows have a few tokens each. A test.jsonl can be put beside."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, first in (("train", rows, 0), ("valid", 4, 1000)):
        lines = [{"prompt": f"{first + i}+1=", "completion": f"{first + i + 1}."} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@cache
def empty_store() -> bytes:
    """An MLflow store without runs; making its tables takes seconds."""
    from sweeps.connect import open_client

    with TemporaryDirectory() as folder:
        open_client(f"sqlite:///{folder}/mlflow.db")
        return (Path(folder) / "mlflow.db").read_bytes()


@dataclass
class Place:
    """A folder with data, in which searches run; everything they write is in it, by absolute paths."""

    root: Path
    data: Path = field(init=False)

    def __post_init__(self) -> None:
        self.data = write_data(self.root / "data")
        (self.root / "mlflow.db").write_bytes(empty_store())

    def arguments(self, *more: str) -> list[str]:
        shared = ["model=tiny", f"data.path={self.data}", "trainer.iters=8", "trainer.eval_every=4", "fuse=false"]
        shared += ["tracking.samples=0"]  # answering takes a second
        shared += [f"output_dir={self.root}/outputs", f"tracking.uri=sqlite:///{self.root}/mlflow.db"]
        given = {text.partition("=")[0]: text for text in (*shared, *more)}  # the last one of a key counts
        return list(given.values())

    def search_arguments(self, *more: str) -> list[str]:
        space = ["search=quick", RATE, RANK, "search.pruner.n_startup_trials=2", "n_trials=8", "search.confirm.k=0"]
        words = self.arguments(*space, f"storage=sqlite:///{self.root}/optuna.db", "study=s", *more)
        if "search/pruner=none" in more:  # it has no options
            words = [word for word in words if not word.startswith("search.pruner.")]
        return ["search", *words]

    def start(self, *argv: str, module: str = "sweeps") -> subprocess.Popen:
        """The command in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", module, *argv],
            cwd=self.root, env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def folder(self, study: str = "s") -> Path:
        return self.root / "outputs" / study

    def record(self, study: str = "s") -> StudyRecord:
        return load_study(self.folder(study))

    def trial(self, name: str, study: str = "s") -> TrialRecord:
        return load_trial(self.folder(study) / name)

    def trials(self, study: str = "s") -> list[TrialRecord]:
        """Those of the search, by number."""
        return load(self.folder(study)).searched

    def results(self, study: str = "s") -> list[tuple]:
        """All that must be the same when a search is repeated."""
        return [
            (t.name, t.state, t.params, t.value, t.metrics.get("final_val_loss"), t.step, t.adapter_sha256)
            for t in load(self.folder(study)).trials
        ]


def quick(place: Place, *more: str) -> int:
    """A search without the seconds that a report takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reports.writer.build", lambda folder: folder / "report" / "report.html")
        patch.setattr("sweeps.store.Store.add_folder", lambda *given: None)
        return main(place.search_arguments(*more))
