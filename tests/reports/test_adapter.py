"""The size of ΔW by layer, by hand."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from reports import adapter
from reports.study import load


def write_adapter(folder, pairs, scale=2.0):
    """`pairs`: (block, kind) → A and B."""
    folder.mkdir()
    tensors = {}
    for (block, kind), (a, b) in pairs.items():
        name = f"model.layers.{block}.{kind}.lora_"
        tensors |= {f"{name}a": np.array(a, np.float32), f"{name}b": np.array(b, np.float32)}
    save_file(tensors, folder / "adapters.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"lora_parameters": {"scale": scale}}))


@pytest.fixture
def adapters(study_folder):
    return study_folder / "trial-0003" / "adapters"


ONE = [[3.0], [4.0]]  # norm 5


def test_norms_by_layer(study_folder, adapters):
    pairs = {(2, "q"): (ONE, [[1.0]]), (3, "q"): (ONE, [[0.0, 2.0]]), (3, "v"): (ONE, [[0.0]])}
    write_adapter(adapters, pairs)
    found = adapter.compute(load(study_folder))
    (drawn,) = adapter.tiles([found])
    assert (found.trial, drawn.columns, drawn.rows) == ("trial-0003", ["2", "3"], ["q", "v"])
    assert drawn.values == [[10.0, 20.0], [None, 0.0]] and drawn.scale == (0.0, 20.0)
    assert found.dead == ["v in block 3"] and found.upper == 0.8
    assert "The largest, 20, is that of q in block 3; 80.00 % of the squared norm" in found.caption
    assert found.caption.endswith("Below 0.001 of the median: 1 layer (v in block 3).")


def test_the_norm_is_that_of_the_product():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(7, 3)), draw.normal(size=(3, 5))
    assert adapter.product_norm(a, b) == pytest.approx(np.linalg.norm(a @ b))
    assert not math.isclose(adapter.product_norm(a, b), np.linalg.norm(a) * np.linalg.norm(b), rel_tol=0.05)


def test_why_it_is_not_drawn(study_folder, adapters, make_study):
    assert "cannot be read" in adapter.compute(load(study_folder)).why_not
    write_adapter(adapters, {(0, "q"): (ONE, [[0.0]])})
    assert "changes nothing" in adapter.compute(load(study_folder)).why_not
    (adapters / "adapters.safetensors").write_bytes(b"no tensors")
    assert "cannot be read" in adapter.compute(load(study_folder)).why_not
    assert "no winner" in adapter.compute(load(make_study("none", trials=[]))).why_not


def test_a_winner_without_adapters(study_folder, adapters):
    write_adapter(adapters, {(0, "q"): (ONE, [[1.0]])})
    study = load(study_folder)
    study.winner.config["train_type"] = "full"
    assert "has no adapters" in adapter.compute(study).why_not
