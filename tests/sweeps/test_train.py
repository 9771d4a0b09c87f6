"""One fine-tune from its command to its adapter."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from lora_core.errors import UserError
from lora_core.records import TrialRecord, load_metrics, save_trial
from sweeps.cli import main
from sweeps.client import Worker
from sweeps.display import Display
from sweeps.train import _check_new
from tests.sweeps.helpers import Place, quick


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with a finished run, `first`."""
    place = Place(tmp_path_factory.mktemp("train"))
    assert (
        main(
            ["train", *place.arguments("study=first", "lora_parameters.rank=4", "fuse=true", "fuse_quantization=8bit")]
        )
        == 0
    )
    return place


def test_what_a_run_leaves(place: Place) -> None:
    folder = place.folder("train/first")
    trial, record = place.trial("", "train/first"), place.record("train/first")
    assert (trial.role, trial.state, trial.step) == ("train", "complete", 8)
    assert (record.kind, record.state) == ("train", "complete")
    assert [row["step"] for row in load_metrics(folder)] == [0, 4, 8]
    for file in ("adapters.safetensors", "adapter_config.json", "fused/model.safetensors"):
        assert (folder / "adapters" / file).exists()
    assert json.loads((folder / "adapters/fused/config.json").read_text())["quantization"]["bits"] == 8
    (note,) = (note for note in record.notes if "put in 8bit" in note)
    assert "changed ΔW by 0 % of its size" in note  # a base in float32
    changed, loss = re.findall(r"weights by (\S+) % of their size, .* is (\S+)\.$", note)[0]
    assert 0 < float(changed) < 1 and float(loss) == pytest.approx(trial.value, rel=0.01)


def test_a_name_is_used_once(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *place.arguments("study=first")]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_an_adapter_is_not_written_over(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = place.folder("train/first") / "adapters"
    assert main(["train", *place.arguments("study=other", f"adapter_path={adapter}")]) == 2
    assert f"adapter_path={adapter} holds an adapter already" in capsys.readouterr().err
    assert not place.folder("train/other").exists()
    # But by the run that had just saved it when it was interrupted.
    save_trial(tmp_path, TrialRecord("other", "train", "running", config={"adapter_path": str(adapter)}))
    _check_new(tmp_path, str(adapter))
    save_trial(tmp_path, TrialRecord("other", "train", "running", config={"adapter_path": None}))
    with pytest.raises(UserError, match="holds an adapter already"):
        _check_new(tmp_path, str(adapter))


def test_from_an_adapter(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = place.folder("train/first") / "adapters"
    more = ["study=more", "lora_parameters.rank=4", f"resume_adapter_file={adapter}"]
    capsys.readouterr()
    assert main(["train", *place.arguments(*more)]) == 0
    printed = capsys.readouterr().out
    assert "mlx_lm.generate --model" in printed and "before the first step" in printed
    first, rows = place.trial("", "train/first"), load_metrics(place.folder("train/more"))
    assert rows[0]["val_loss"] == pytest.approx(first.value, rel=1e-5)


def test_a_search_from_an_adapter_that_is_fitted(place: Place) -> None:
    given = [f"resume_adapter_file={place.folder('train/first')}/adapters", "lora_parameters.rank=2,8"]
    method = ["search/sampler=grid", "search/pruner=none", "optimizer.learning_rate=1e-3", "trainer.slots=1"]
    assert quick(place, *given, *method) == 2
    assert quick(place, *given, *method, "resume_strict=false") == 0
    cut = {trial.config["lora_parameters"]["rank"]: trial.metrics.get("resume_error") for trial in place.trials()}
    assert 0 < cut[2] < 1 and cut[8] is None
    (note,) = (note for note in place.record().notes if "is cut to 2" in note)
    assert f"its rank 4 is cut to 2, which takes {100 * cut[2]:.2g} % of the size of ΔW." in note


def test_a_run_goes_on_from_its_whole_state(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *place.arguments("study=half", "lora_parameters.rank=4", "keep_state=true")]) == 0
    again = ["resume=train/half", "study=on"]
    for wrong, said in (
        ([], "has done 8 steps, this would be 8: give more"),
        (["trainer.iters=16", "lora_parameters.rank=8"], "lora_parameters.rank: 4 → 8"),
        (["trainer.iters=16", "resume=train/first"], "Only keep_state=true keeps that"),
        (["trainer.iters=16", "resume=train/hal"], "No training 'train/hal' in "),
        (["trainer.iters=16", "resume=train/hal"], "Did you mean train/half"),
    ):
        capsys.readouterr()
        assert main(["train", *place.arguments(*again, *wrong)]) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) <= 3, error
        assert not place.folder("train/on").exists()
    assert main(["train", *place.arguments(*again, "trainer.iters=16")]) == 0
    half, on = (load_metrics(place.folder(f"train/{name}")) for name in ("half", "on"))
    assert [row["step"] for row in on] == [0, 4, 8, 12, 16] and on[:3] == half
    assert place.trial("", "train/on").config["lora_parameters"]["rank"] == 4


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

    def crashed(_: Display, name: str, row: dict[str, float]) -> None:
        if row["step"] == 0:  # once: a second time would end it before it has said where it was
            os.kill(workers[0].process.pid, signal.SIGSEGV)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "__init__", kept)
        patch.setattr(Display, "evaluated", crashed)
        assert main(["train", *place.arguments("study=dead")]) == 1
    said = capfd.readouterr().err
    assert "SIGSEGV" in said and "worker.log" in said and len(said.splitlines()) <= 3
    log = (place.folder("train/dead") / "worker.log").read_text()
    assert "Segmentation fault" in log  # and where it was
    assert place.record("train/dead").state == "interrupted"
    # The same command once more.
    assert main(["train", *place.arguments("study=dead")]) == 0
