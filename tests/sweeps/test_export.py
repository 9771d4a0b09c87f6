"""`lora-sweep export`, on a run of the tiny model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lora_core.adapter_folder import read, save_adapter
from lora_core.models import tiny
from sweeps.cli import main
from sweeps.export import _base
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


@pytest.mark.parametrize("name", ["outputs/train/one/", "outputs/train/one/one", "outputs/train/one/adapters"])
def test_by_its_path(name: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)
    assert main(["export", name, "--format", "peft", "--out", str(tmp_path / "made")]) == 0
    assert (tmp_path / "made" / "adapter_config.json").exists()


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
        command = f"mlx_lm.generate --model {read(str(folder)).config['model']} --adapter-path {folder} --prompt"
        assert "weights of the model itself" in said and command in said and "fuse=true" in said
        assert len(said.splitlines()) <= 3 and not (folder / form).exists()


Tensors = dict[str, np.ndarray]


def nothing(_: Tensors) -> None:
    pass


def another_block(tensors: Tensors) -> None:
    for name in [name for name in tensors if "layers.3." in name]:
        tensors[name.replace("layers.3.", "layers.4.")] = tensors.pop(name)


def another_name(tensors: Tensors) -> None:
    for side in ("lora_a", "lora_b"):
        tensors[f"model.layers.3.mlp.up.{side}"] = tensors.pop(f"model.layers.3.mlp.up_proj.{side}")


def another_width(tensors: Tensors) -> None:
    tensors["model.layers.3.mlp.up_proj.lora_a"] = np.ones((8, 4), np.float32)


@pytest.mark.parametrize("form", ["peft", "mlx"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (nothing, None),
        (another_block, "lack 7 of its layers, or have them in other widths (model.layers.4.mlp.down_proj)"),
        (another_name, "lack 1 of its layers, or have them in other widths (model.layers.3.mlp.up)"),
        (another_width, "lack 1 of its layers, or have them in other widths (model.layers.3.mlp.up_proj)"),
    ],
)
def test_layers_that_the_base_does_not_have(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str,
    change: Callable[[Tensors], None], said: str | None,
) -> None:  # fmt: skip
    """In an adapter that another program has written, without a sha256."""
    ours = read(str(place.folder("train/one") / "adapters"))
    change(ours.tensors)
    save_adapter(tmp_path / "a", ours.tensors, ours.config)
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "sha256"}))
    assert export(place, str(tmp_path / "a"), "--format", form, "--out", str(tmp_path / "out")) == (2 if said else 0)
    error = capsys.readouterr().err
    assert (tmp_path / "out").exists() == (said is None) and len(error.splitlines()) <= 3
    assert said is None or said in error


def test_another_base_model_is_noticed_after_the_way_there_and_back(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(place, "train/one", "--format", "peft", "--out", str(tmp_path / "peft")) == 0
    assert export(place, str(tmp_path / "peft"), "--format", "mlx", "--out", str(tmp_path / "mlx")) == 0
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(tiny, "SEED", 1)
    tiny.write(tmp_path / "other")
    capsys.readouterr()
    words = place.arguments(f"model.path={tmp_path}/other", f"resume_adapter_file={tmp_path}/mlx", "study=two")
    assert main(["train", *words, "lora_parameters.rank=4", "num_layers=2"]) == 2
    assert "was trained on another base model: builtin:tiny" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["peft", "mlx"])
def test_a_base_that_has_changed_is_refused(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    ours = read(str(place.folder("train/one") / "adapters"))
    (tmp_path / "base").mkdir()
    save_adapter(tmp_path / "adapter", ours.tensors, {**ours.config, "model": str(tmp_path / "base")})
    words = [str(tmp_path / "adapter"), "--format", form, "--out"]
    tiny.write(tmp_path / "base")
    assert export(place, *words, str(tmp_path / "out")) == 0
    monkeypatch.setattr(tiny, "SEED", 1)
    tiny.write(tmp_path / "base")
    assert export(place, *words, str(tmp_path / "again")) == 2
    error = capsys.readouterr().err
    assert "was trained on another base model: builtin:tiny" in error and not (tmp_path / "again").exists()


def test_no_command_that_mlx_lm_cannot_do(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for study, words in {"merged": ["fuse=true"], "alone": []}.items():
        more = ["train_type=dora", "quantization=6bit", f"study={study}", "trainer.iters=1", *words]
        assert main(["train", *place.arguments(*more)]) == 0
        said = capsys.readouterr().out
        fused = place.folder(f"train/{study}") / "adapters" / "fused"
        assert "--adapter-path" not in said and (f"mlx_lm.generate --model {fused}" in said) == bool(words)
    assert export(place, "train/alone", "--format", "mlx") == 0
    said = capsys.readouterr().out
    assert "mlx_lm.generate" not in said and "cannot load DoRA over the 6 bits" in said


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
        ({"lora_parameters": None}, "has lora_parameters.scale null, expected a finite number"),
        ({"lora_parameters": {"rank": 4, "scale": "x"}}, 'has lora_parameters.scale "x", expected a finite number'),
        ({"lora_parameters": {"rank": None, "scale": 2.0}}, "has lora_parameters.rank null, its weights rank 4"),
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


def test_where_transformers_finds_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "mine" / name).touch()
    for path, base in (
        ("builtin:tiny", str(tiny.folder_of())), (None, "/cache/made"), ("mine", f"{tmp_path}/mine"), ("a/b", "a/b"),
        ("model.gguf", "/cache/made"), ("~nobody/x", "/cache/made"),
    ):  # fmt: skip
        assert _base({"model": "/cache/made", "model_path": path}) == base


def test_a_place_that_cannot_be(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert export(place, "train/one", "--format", "peft", "--out", str(tmp_path / "file" / "out")) == 2
    assert "cannot be written: Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["peft", "mlx"])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "{", "config.json:1: not valid JSON"),
        ("config.json", "[]", "holds [], expected settings"),
        ("config.json", '{"quantization": "4bit"}', 'has quantization "4bit", expected settings'),
        ("model.safetensors", "", "its base model is damaged"),
        ("model.safetensors", None, "its base model is damaged"),
    ],
)
def test_a_damaged_base_is_refused_before_anything_is_written(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, name: str, content: str | None,
    said: str,
) -> None:  # fmt: skip
    ours = read(str(place.folder("train/one") / "adapters"))
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    shutil.copytree(ours.config["model"], base)
    save_adapter(adapter, ours.tensors, {**ours.config, "model": str(base)})
    settings = json.loads((adapter / "adapter_config.json").read_text())
    del settings["sha256"]  # so that its layers are compared
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    whole = (base / name).read_text(errors="replace")
    (base / name).write_text(whole[: len(whole) // 2] if content is None else content)
    assert export(place, str(adapter), "--format", form, "--out", str(out)) == 2
    error = capsys.readouterr().err
    assert said in error and str(base / name) in error and len(error.splitlines()) <= 3 and not out.exists()


def test_a_base_that_is_a_file_is_not_there(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = read(str(place.folder("train/one") / "adapters"))
    (tmp_path / "base").touch()
    save_adapter(tmp_path / "adapter", ours.tensors, {**ours.config, "model": str(tmp_path / "base")})
    assert export(place, str(tmp_path / "adapter"), "--format", "peft") == 0
    assert f"not at {tmp_path / 'base'}, so its layers were not compared" in capsys.readouterr().out


def test_of_a_base_that_was_quantised_the_original_is_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study=few-bits", "trainer.iters=1", "quantization=4bit", "fuse=false"]
    assert main(["train", *place.arguments(*words)]) == 0
    assert export(place, "train/few-bits", "--format", "peft") == 0
    assert "this names its original" in capsys.readouterr().out
    made = place.folder("train/few-bits") / "adapters" / "peft" / "adapter_config.json"
    assert json.loads(made.read_text())["base_model_name_or_path"] == str(tiny.folder_of())


def test_a_base_given_by_a_relative_path_is_found_from_anywhere(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    tiny.write(tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    for study, words in {"whole": [], "few": ["quantization=8bit"]}.items():
        more = ["model.path=models/mine", f"study={study}", "trainer.iters=1", *words]
        assert main(["train", *place.arguments(*more)]) == 0
    monkeypatch.chdir("/")
    for study in ("whole", "few"):
        assert export(place, f"train/{study}", "--format", "peft") == 0
        made = place.folder(f"train/{study}") / "adapters" / "peft" / "adapter_config.json"
        assert json.loads(made.read_text())["base_model_name_or_path"] == str(tmp_path / "models" / "mine")
