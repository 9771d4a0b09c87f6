"""Adapters on disk: what a resume refuses, and that a failed write costs nothing."""

import hashlib
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from lora_core import adapter_folder
from lora_core.adapter_files import adapter_config, load_adapter, named
from lora_core.adapter_folder import read, save_adapter
from lora_core.config import LoraParameters, TrainConfig
from lora_core.engine import Engine
from lora_core.errors import UserError
from tests.lora_core.helpers import new_engine

RANK = 4


@pytest.fixture(scope="module")
def engine() -> Engine:
    return new_engine()


def sites_of(engine: Engine, depth: int = 2, keys: list[str] | None = None):
    return [s for s in engine.sites if s.layer >= 4 - depth and (keys is None or s.key in keys)]


def adapter_of(engine: Engine, sites, rank: int = RANK, value: float = 0.5):
    shapes = [site.module.shapes() for site in sites]
    return [(mx.full((a[0], rank), value), mx.full((rank, b[1]), value)) for a, b in shapes]


def save(engine: Engine, folder: Path, value: float = 0.5, **which) -> str:
    sites = sites_of(engine, **which)
    config = TrainConfig(
        num_layers=2, lora_parameters=LoraParameters(rank=RANK, scale_ratio=3.0, scaling="alpha_over_sqrt_r")
    )
    made = adapter_config(config, sites, engine.base.info)
    tensors = named(engine.split, sites, adapter_of(engine, sites, value=value))
    return save_adapter(folder, {name: np.array(tensor) for name, tensor in tensors}, made)


def test_what_is_saved_is_loaded_by_folder_and_by_file(engine: Engine, tmp_path: Path) -> None:
    save(engine, tmp_path)
    sites = sites_of(engine)
    for path in (tmp_path, tmp_path / "adapters.safetensors"):
        for found, expected in zip(load_adapter(read(str(path)), engine.split, sites, RANK), adapter_of(engine, sites),
                                   strict=True):  # fmt: skip
            assert all(np.array_equal(f, e) for f, e in zip(found, expected, strict=True))


def test_digest_is_that_of_the_file(engine: Engine, tmp_path: Path) -> None:
    digest = save(engine, tmp_path)
    assert digest == hashlib.sha256((tmp_path / "adapters.safetensors").read_bytes()).hexdigest()
    assert save(engine, tmp_path, value=0.25) != digest


def test_the_configuration_tells_mlx_lm_the_multiplier(engine: Engine, tmp_path: Path) -> None:
    save(engine, tmp_path, keys=["mlp.up_proj"])
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    lora = written["lora_parameters"]
    assert (lora["scale"], lora["alpha"], lora["scale_ratio"]) == (12 / 2, 12, 3)
    assert (lora["keys"], written["num_layers"], written["fine_tune_type"]) == (["mlp.up_proj"], 2, "lora")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"rank": 8}, ["28 of other shape", "found (128, 4), expected (128, 8)"]),
        ({"depth": 3}, ["14 missing", "model.layers.1."]),
        ({"depth": 1}, ["14 that this run does not have", "model.layers.2."]),
        ({"keys": ["mlp.up_proj"]}, ["24 that this run does not have"]),
        ({"rank": 2, "depth": 3, "keys": ["mlp.up_proj"]}, ["4 of other shape", "2 missing", "24 that this"]),
    ],
)
def test_another_run_is_told_the_differences(engine: Engine, tmp_path: Path, wanted: dict, said: list[str]) -> None:
    save(engine, tmp_path)
    which = {name: value for name, value in wanted.items() if name != "rank"}
    with pytest.raises(UserError) as caught:
        load_adapter(read(str(tmp_path)), engine.split, sites_of(engine, **which), wanted.get("rank", RANK))
    message = str(caught.value)
    assert all(words in message for words in said), message
    assert str(tmp_path) in message and len(message.splitlines()) <= 3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(engine: Engine, tmp_path: Path, value: float) -> None:
    save(engine, tmp_path, value=value)
    with pytest.raises(UserError, match="not finite"):
        load_adapter(read(str(tmp_path)), engine.split, sites_of(engine), RANK)


def test_files_that_are_not_there_or_no_adapters(engine: Engine, tmp_path: Path) -> None:
    for path, said in ((tmp_path, "holds no adapter"), (tmp_path / "no", "does not exist")):
        with pytest.raises(UserError, match=said):
            load_adapter(read(str(path)), engine.split, sites_of(engine), RANK)
    (tmp_path / "adapters.safetensors").write_bytes(b"not a safetensors file at all")
    with pytest.raises(UserError, match="not a safetensors file"):
        load_adapter(read(str(tmp_path)), engine.split, sites_of(engine), RANK)


@pytest.mark.parametrize("failing", ["weights", "configuration"])
def test_a_failed_write_leaves_the_old_adapter(engine: Engine, tmp_path: Path, monkeypatch, failing: str) -> None:
    save(engine, tmp_path)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half(_: object, path: Path, **__) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    def refuse(*_) -> None:
        raise OSError("no space left on device")

    if failing == "weights":
        monkeypatch.setattr(adapter_folder, "serialize_file", half)
    else:
        monkeypatch.setattr(adapter_folder, "write_json", refuse)
    with pytest.raises(OSError, match="no space"):
        save(engine, tmp_path, value=0.25)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_an_adapter_of_another_base_model_is_refused(engine: Engine, tmp_path: Path) -> None:
    save(engine, tmp_path)
    sites, own = sites_of(engine), engine.base.info.fingerprint
    assert load_adapter(read(str(tmp_path)), engine.split, sites, RANK, base=own)
    with pytest.raises(UserError, match="trained on another base model: builtin:tiny"):
        load_adapter(read(str(tmp_path)), engine.split, sites, RANK, base="another")
