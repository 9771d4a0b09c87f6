"""`lora-sweep export`, on a run of the tiny model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lora_core.adapter_folder import read
from sweeps.cli import main
from tests.sweeps.helpers import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with a finished run, `one`."""
    place = Place(tmp_path_factory.mktemp("export"))
    more = ["study=one", "lora_parameters.rank=4", "num_layers=2", "lora_parameters.dropout=0.1"]
    assert main(["train", *place.arguments(*more)]) == 0
    return place


def export(place: Place, *words: str) -> int:
    return main(["export", *words, "--output-dir", str(place.root / "outputs")])


def test_to_peft_and_back(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(place, "train/one", "--format", "peft") == 0
    made = place.folder("train/one") / "adapters" / "peft"
    said = capsys.readouterr().out
    assert str(made) in said and "PeftModel.from_pretrained" in said and "dropout" in said
    config = json.loads((made / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["layers_to_transform"]) == (4, 20, [2, 3])
    assert Path(config["base_model_name_or_path"]).is_dir()

    assert export(place, str(made), "--format", "mlx", "--out", str(tmp_path / "back")) == 0
    assert "mlx_lm.generate" in capsys.readouterr().out
    back, ours = read(str(tmp_path / "back")), read(str(made.parent))
    assert back.tensors.keys() == ours.tensors.keys()
    assert all(np.array_equal(tensor, ours.tensors[name]) for name, tensor in back.tensors.items())
    assert back.config["lora_parameters"]["scale"] == 5.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train/on"], "No training"),
        (["train/one/trial-0001"], "has no trial 'trial-0001'. With an adapter: one."),
        (["train/one", "--out", "."], "not empty"),
    ],
)
def test_refused(
    words: list[str], said: str, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.root)
    assert export(place, *words, "--format", "peft") == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) <= 3


def test_whole_weights_are_no_adapter(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["study=full", "train_type=full", "num_layers=1", "trainer.iters=1"]
    assert main(["train", *place.arguments(*more)]) == 0
    folder = place.folder("train/full") / "adapters"
    for form in ("peft", "mlx"):
        capsys.readouterr()
        assert export(place, "train/full", "--format", form) == 2
        said = capsys.readouterr().err
        assert "weights of the model itself" in said and f"--adapter-path {folder}" in said and "fuse=true" in said
        assert len(said.splitlines()) <= 3 and not (folder / form).exists()


def test_layers_that_the_base_does_not_have(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(place.folder("train/one") / "adapters", tmp_path / "a", ignore=shutil.ignore_patterns("peft"))
    file = tmp_path / "a" / "adapter_config.json"
    config = json.loads(file.read_text())
    (tmp_path / "base").mkdir()
    shutil.copy(tmp_path / "a" / "adapters.safetensors", tmp_path / "base" / "model.safetensors")
    file.write_text(json.dumps({**config, "model": str(tmp_path / "base")}))
    assert export(place, str(tmp_path / "a"), "--format", "peft") == 2
    assert "not in the files of its base model" in capsys.readouterr().err
    assert not (tmp_path / "a" / "peft").exists()


def test_an_adapter_that_was_changed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where its own configuration was changed with it."""
    file = place.folder("train/one") / "trial.json"
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), "adapter_sha256": "another"}))
    try:
        assert export(place, "train/one", "--format", "peft", "--out", str(place.root / "no")) == 2
        assert "adapters.safetensors has changed since it was written" in capsys.readouterr().err
        assert not (place.root / "no").exists()
    finally:
        file.write_text(before)


@pytest.mark.parametrize("form", ["peft", "mlx"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_parameters": None}, "has no lora_parameters.scale that is a number"),
        ({"lora_parameters": {"rank": 4, "scale": "x"}}, "has no lora_parameters.scale that is a number"),
        ({"lora_parameters": {"rank": None, "scale": 2.0}}, "has lora_parameters.rank None, its weights rank 4"),
        ({"lora_parameters": {"rank": 8, "scale": 2.0}}, "has lora_parameters.rank 8, its weights rank 4"),
    ],
    ids=str,
)
def test_settings_that_do_not_tell(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, changes: dict, said: str
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(place.folder("train/one") / "adapters", adapter, ignore=shutil.ignore_patterns("peft", "fused"))
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert export(place, str(adapter), "--format", form, "--out", str(tmp_path / "out")) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_place_that_cannot_be(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert export(place, "train/one", "--format", "peft", "--out", str(tmp_path / "file" / "out")) == 2
    assert "cannot be written: Not a directory" in capsys.readouterr().err
