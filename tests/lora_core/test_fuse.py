"""Merged weights are W₀ + s·(A·B)ᵀ, the folder is replaced whole, and the base model is itself again."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model

from lora_core import fuse as fusing
from lora_core import models, saved
from lora_core.adapters import Site
from lora_core.config import TrainConfig, TrainerConfig
from lora_core.engine import Engine
from lora_core.fuse import fuse
from lora_core.layers import StackedLora
from lora_core.models import loading
from lora_core.records import load_metrics
from tests.lora_core.architectures import write_model
from tests.lora_core.helpers import demo, new_engine, new_spec, run

S = 2.5


def made(engine: Engine, rank: int = 3) -> tuple[list[Site], list[tuple[mx.array, mx.array]]]:
    """Random adapters on the two top blocks."""
    sites = [site for site in engine.sites if site.layer >= engine.base.info.depth - 2]
    pairs = []
    for number, site in enumerate(sites):
        a, b = site.module.shapes()
        one, two = mx.random.split(mx.random.key(number))
        pairs.append((mx.random.normal((*a[:-1], rank), key=one), mx.random.normal((*b[:-2], rank, b[-1]), key=two)))
    return sites, pairs


def merge(engine: Engine, folder: Path, sites: list[Site], pairs: list) -> dict[str, mx.array]:
    fuse(folder, engine.base, engine.split.blocks, sites, pairs, S)
    return dict(tree_flatten(mlx_lm.load(str(folder))[0].parameters()))


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_merged_weights_are_exact(kind: str, tmp_path: Path) -> None:
    engine = new_engine(1, str(write_model(tmp_path / "model", kind)))
    sites, pairs = made(engine)
    merged = merge(engine, tmp_path / "fused", sites, pairs)
    base = dict(tree_flatten(mlx_lm.load(str(tmp_path / "model"))[0].parameters()))
    assert merged.keys() == base.keys()
    changed = set()
    for site, (a, b) in zip(sites, pairs, strict=True):
        name = f"{engine.split.block_name(site.layer)}.{site.key}.weight"
        delta = S * np.swapaxes(np.array(a, dtype=np.float64) @ np.array(b, dtype=np.float64), -1, -2)
        np.testing.assert_allclose(np.array(merged[name]), np.array(base[name]) + delta, rtol=0, atol=1e-5)
        changed.add(name)
    assert all(mx.array_equal(merged[name], base[name]) for name in base.keys() - changed)
    assert kind == "llama" or any("switch_mlp" in name for name in changed)


def test_the_base_model_is_itself_again(tmp_path: Path) -> None:
    engine = new_engine()
    tokens = mx.array([[1, 2, 3, 4]])
    before = engine.base.model(tokens)
    sites, pairs = made(engine)
    merge(engine, tmp_path / "fused", sites, pairs)
    assert mx.array_equal(engine.base.model(tokens), before)
    assert all(isinstance(site.module, StackedLora) for site in engine.sites)
    assert isinstance(engine.base.model.layers[3].self_attn.q_proj, StackedLora)


def test_an_older_folder_is_replaced_whole(tmp_path: Path) -> None:
    engine = new_engine()
    sites, pairs = made(engine)
    (tmp_path / "fused").mkdir()
    (tmp_path / "fused" / "of-another-model").write_text("")
    merge(engine, tmp_path / "fused", sites, pairs)
    assert not (tmp_path / "fused" / "of-another-model").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["fused"]


def test_a_failed_merge_leaves_the_old_folder_and_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = new_engine()
    sites, pairs = made(engine)
    (tmp_path / "fused").mkdir()
    (tmp_path / "fused" / "old").write_text("")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    linear = sites[0].module.linear
    weight = linear.weight
    monkeypatch.setattr(fusing, "save", refuse)
    with pytest.raises(OSError, match="no space"):
        fuse(tmp_path / "fused", engine.base, engine.split.blocks, sites, pairs, S)
    assert (tmp_path / "fused" / "old").exists()
    assert sites[0].module.linear is linear and linear.weight is weight


def test_no_model_is_begun_without_room_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = new_engine()
    sites, pairs = made(engine)
    size = sum(array.nbytes for _, array in tree_flatten(engine.base.model.parameters()))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size // 2))
    monkeypatch.setattr(fusing, "save", lambda *_, **__: pytest.fail("it was begun"))
    with pytest.raises(OSError, match="GB are needed"):
        fuse(tmp_path / "fused", engine.base, engine.split.blocks, sites, pairs, S)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["4bit", "6bit", "8bit", "mxfp4"])
def test_a_quantised_base_is_dequantised_first(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dequantised = {n: np.array(v) for n, v in tree_flatten(models.load("builtin:tiny", name).model.parameters())}
    monkeypatch.setattr(loading, "_to_train_dtype", lambda *_: [])
    engine = Engine(models.load("builtin:tiny", name), demo(), 1)
    sites, pairs = made(engine)
    tokens = mx.array([[1, 2, 3, 4]])
    before = engine.base.model(tokens)
    error = fuse(tmp_path / "fused", engine.base, engine.split.blocks, sites, pairs, S)
    merged = dict(tree_flatten(mlx_lm.load(str(tmp_path / "fused"))[0].parameters()))
    assert merged.keys() == dequantised.keys()
    deltas = {f"{engine.split.block_name(site.layer)}.{site.key}.weight": S * np.array(a @ b).T
              for site, (a, b) in zip(sites, pairs, strict=True)}  # fmt: skip
    for weight, base in dequantised.items():
        np.testing.assert_allclose(
            np.array(merged[weight].astype(mx.float32)), base + deltas.get(weight, 0), rtol=0, atol=1e-4
        )
    assert error < 1e-3
    assert isinstance(sites[0].module.linear, nn.QuantizedLinear)
    assert mx.array_equal(engine.base.model(tokens), before)


def test_fewer_bits_on_request_and_what_they_cost(tmp_path: Path) -> None:
    engine, config = new_engine(), TrainConfig(trainer=TrainerConfig(max_seq_length=128))
    sites, pairs = made(engine)
    pairs = [(0.1 * a, b) for a, b in pairs]
    whole = merge(engine, tmp_path / "fused", sites, pairs)
    merged = Engine(models.load(str(tmp_path / "fused")), engine.data, 1)
    before = saved.score(merged, TrainConfig(num_layers=1), None, "valid")
    found = {}
    for bits in ("8bit", "4bit"):
        merge(engine, tmp_path / bits, sites, pairs)
        found[bits] = saved.requantise(engine, tmp_path / bits, bits, config)
        stock = mlx_lm.load(str(tmp_path / bits))[0]
        assert isinstance(stock.layers[3].mlp.up_proj, nn.QuantizedLinear)
        few = dict(tree_flatten(dequantize_model(stock).parameters()))
        names = [name for name in whole if whole[name].ndim == 2]
        lost = sum(np.square(np.array(few[name] - whole[name], np.float64)).sum() for name in names)
        size = sum(np.square(np.array(whole[name], np.float64)).sum() for name in names)
        assert found[bits][0] == pytest.approx((lost / size) ** 0.5, rel=1e-3)
    assert found["4bit"][0] > 8 * found["8bit"][0] > 0
    assert 0 < 2 * abs(found["8bit"][1] - before) < abs(found["4bit"][1] - before) < 0.1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4bit", "8bit", "fused"]


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_what_rounding_takes_of_the_change_is_measured(size: float, tmp_path: Path) -> None:
    engine = new_engine()
    sites, pairs = made(engine)
    for site in sites:
        site.module.linear.weight = site.module.linear.weight.astype(mx.bfloat16)
    pairs = [(size * a, b) for a, b in pairs]
    error = fuse(tmp_path / "fused", engine.base, engine.split.blocks, sites, pairs, S)
    merged = dict(tree_flatten(mlx_lm.load(str(tmp_path / "fused"))[0].parameters()))
    lost = changed = 0.0
    for site, (a, b) in zip(sites, pairs, strict=True):
        delta = S * np.array(a @ b, dtype=np.float64).T
        weight = np.array(merged[f"{engine.split.block_name(site.layer)}.{site.key}.weight"].astype(mx.float32))
        lost += ((weight - np.array(site.module.linear.weight.astype(mx.float32)) - delta) ** 2).sum()
        changed += (delta**2).sum()
    assert error == pytest.approx((lost / changed) ** 0.5, rel=1e-2)
    assert (error > 0.1) == (size < 1)


def test_dora_over_a_row_of_zeros_trains_and_merges(tmp_path: Path) -> None:
    engine = new_engine(2)
    for site in engine.sites:  # one of the two trials leaves block 2 out
        if site.key == "mlp.up_proj":
            site.module.linear.weight[0] = 0
    specs = [new_spec(tmp_path, f"top-{n}", train_type="dora", num_layers=n) for n in (1, 2)]
    records = run(engine, *specs)
    assert [record.state for record in records] == ["complete", "complete"]
    assert all(record.metrics["best_val_loss"] < load_metrics(Path(s.folder))[0]["val_loss"] - 0.01
               for record, s in zip(records, specs, strict=True))  # fmt: skip
    config = TrainConfig.from_dict(specs[0].config)
    saved.fuse(engine, Path(specs[0].folder) / "adapters", config, tmp_path / "fused")
    merged = Engine(models.load(str(tmp_path / "fused")), engine.data, 1)
    loss = saved.score(merged, replace(config, train_type="lora"), None, "valid")
    assert loss == pytest.approx(records[0].metrics["best_val_loss"], rel=1e-5)
