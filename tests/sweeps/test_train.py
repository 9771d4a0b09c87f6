"""One fine-tune from its command to its adapter."""

import os
import signal
from typing import Any

import pytest

from lora_core.records import load_metrics
from sweeps.cli import main
from sweeps.client import Worker
from sweeps.display import Display
from tests.sweeps.helpers import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with a finished run, `first`."""
    place = Place(tmp_path_factory.mktemp("train"))
    assert main(["train", *place.arguments("study=first", "lora_parameters.rank=4", "fuse=true")]) == 0
    return place


def test_what_a_run_leaves(place: Place) -> None:
    folder = place.folder("train/first")
    trial, record = place.trial("", "train/first"), place.record("train/first")
    assert (trial.role, trial.state, trial.step) == ("train", "complete", 8)
    assert (record.kind, record.state) == ("train", "complete")
    assert [row["step"] for row in load_metrics(folder)] == [0, 4, 8]
    for file in ("adapters.safetensors", "adapter_config.json", "fused/model.safetensors"):
        assert (folder / "adapters" / file).exists()


def test_a_name_is_used_once(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *place.arguments("study=first")]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_from_an_adapter(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = place.folder("train/first") / "adapters"
    more = ["study=more", "lora_parameters.rank=4", f"resume_adapter_file={adapter}"]
    capsys.readouterr()
    assert main(["train", *place.arguments(*more)]) == 0
    printed = capsys.readouterr().out
    assert "mlx_lm.generate --model" in printed and "before the first step" in printed
    first, rows = place.trial("", "train/first"), load_metrics(place.folder("train/more"))
    assert rows[0]["val_loss"] == pytest.approx(first.value, rel=1e-5)


def test_epochs_and_patience(place: Place) -> None:
    length = ["trainer.iters=null", "trainer.epochs=4", "trainer.eval_every=1", "trainer.patience=1"]
    assert main(["train", *place.arguments("study=short", *length, "optimizer.learning_rate=0.5")]) == 0
    trial = place.trial("", "train/short")
    assert trial.planned_steps == 12 and trial.step < 12


def test_a_run_that_diverges(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    wild = ["optimizer.learning_rate=1e30", "trainer.grad_clip=null"]
    assert main(["train", *place.arguments("study=wild", *wild)]) == 1
    assert "failed: diverged" in capsys.readouterr().out


def test_one_run_after_the_other(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)
    assert main(["train", "-m", "lora_parameters.rank=4,8", *place.arguments()]) == 0
    found = sorted(place.root.glob("multirun/*/*/*/adapters/adapters.safetensors"))
    assert [path.parent.parent.name for path in found] == ["0", "1"]


def test_the_training_process_dies(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    workers: list[Worker] = []
    real = Worker.__init__

    def kept(self: Worker, *given: Any) -> None:
        real(self, *given)
        workers.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "__init__", kept)
        patch.setattr(Display, "evaluated", lambda *_: os.kill(workers[0].process.pid, signal.SIGSEGV))
        assert main(["train", *place.arguments("study=dead")]) == 1
    said = capfd.readouterr().err
    assert "SIGSEGV" in said and "worker.log" in said and len(said.splitlines()) <= 3
    log = (place.folder("train/dead") / "worker.log").read_text()
    assert "Segmentation fault" in log  # and where it was
    assert place.record("train/dead").state == "interrupted"
    # The same command once more.
    assert main(["train", *place.arguments("study=dead")]) == 0
