"""PEFT's layout: there and back is the same adapter, and what has no counterpart is refused."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from lora_core.adapter_folder import check_base, read, save_adapter, save_peft
from lora_core.errors import UserError
from lora_core.peft import from_peft, mlx_config, to_peft
from tests.lora_core.conftest import MakeEngine, MakeSpec
from tests.lora_core.helpers import losses, run

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"scale_ratio": 3.0},
    "rslora": {"scale_ratio": 3.0, "scaling": "alpha_over_sqrt_r"},
    "direct": {"scale": 3.0, "scaling": "direct"},
    "dora": {"train_type": "dora", "dropout": 0.1},
}
LORA = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 1.5}}
PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 3}


def layers(*modules: str) -> dict[str, np.ndarray]:
    shapes = {"lora_a": (6, 2), "lora_b": (2, 4)}
    return {f"{m}.{side}": np.ones(shape, np.float32) for m in modules for side, shape in shapes.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(make_engine: MakeEngine, make_spec: MakeSpec, tmp_path: Path, kind: str) -> None:
    spec = make_spec(kind, rank=4, **KINDS[kind])
    run(make_engine(), spec)
    ours = read(f"{spec.folder}/adapters")
    save_peft(tmp_path / "peft", ours.tensors, ours.mlx_config, "the base")
    theirs = read(str(tmp_path / "peft"))
    assert theirs.is_peft and not ours.is_peft
    assert theirs.tensors.keys() == ours.tensors.keys()
    assert all(np.array_equal(theirs.tensors[name], tensor) for name, tensor in ours.tensors.items())

    save_adapter(tmp_path / "mlx", theirs.tensors, theirs.mlx_config)
    tokens = mx.array([[1, 20, 30, 40]])
    base = ours.config["model"]
    expected, found = (
        mlx_lm.load(base, adapter_path=str(folder))[0](tokens)
        for folder in (f"{spec.folder}/adapters", tmp_path / "mlx")
    )
    assert mx.allclose(found, expected, rtol=0, atol=1e-5)
    assert mx.abs(mlx_lm.load(base)[0](tokens) - expected).max() > 1e-2


def test_a_run_starts_from_peft(make_engine: MakeEngine, make_spec: MakeSpec, tmp_path: Path) -> None:
    engine = make_engine()
    first = make_spec("first", rank=4)
    run(engine, first)
    ours = read(f"{first.folder}/adapters")
    save_peft(tmp_path / "peft", ours.tensors, ours.mlx_config, "the base")
    from_ours, from_theirs, anew = (
        make_spec("ours", rank=4, resume_adapter_file=f"{first.folder}/adapters"),
        make_spec("theirs", rank=4, resume_adapter_file=f"{tmp_path}/peft"),
        make_spec("anew", rank=4),
    )
    run(engine, from_ours, from_theirs, anew)
    assert losses(from_theirs) == losses(from_ours) != losses(anew)


def test_names_shapes_and_alpha() -> None:
    tensors, config = to_peft(layers("model.layers.2.mlp.up_proj", "model.layers.3.mlp.up_proj"), LORA, "b")
    assert tensors["base_model.model.model.layers.2.mlp.up_proj.lora_A.weight"].shape == (2, 6)
    assert tensors["base_model.model.model.layers.2.mlp.up_proj.lora_B.weight"].shape == (4, 2)
    assert (config["r"], config["lora_alpha"], config["use_rslora"], config["use_dora"]) == (2, 3, False, False)
    assert (config["target_modules"], config["layers_to_transform"]) == (["mlp.up_proj"], [2, 3])


def test_blocks_that_differ_are_named_one_by_one() -> None:
    modules = ["model.layers.2.mlp.up_proj", "model.layers.3.self_attn.q_proj"]
    _, config = to_peft(layers(*modules), LORA, "b")
    assert (config["target_modules"], config["layers_to_transform"]) == (modules, None)


def test_peft_has_no_form_of_experts() -> None:
    experts = {"model.layers.0.mlp.switch_mlp.up_proj.lora_a": np.ones((4, 2, 6), np.float32)}
    with pytest.raises(UserError, match="experts"):
        to_peft(experts, LORA, "b")


def test_the_base_model_is_told_apart(tmp_path: Path) -> None:
    """Also after the way to PEFT and back; what PEFT itself wrote says nothing of it."""
    known = {"model_path": "their/model", "model_fingerprint": "aa"}
    save_peft(tmp_path / "peft", layers("model.layers.2.mlp.up_proj"), LORA | known, "b")
    assert not known.keys() & json.loads((tmp_path / "peft" / "adapter_config.json").read_text()).keys()
    theirs = read(str(tmp_path / "peft"))
    save_adapter(tmp_path / "mlx", theirs.tensors, theirs.mlx_config)
    for name in ("peft", "mlx"):
        config = read(str(tmp_path / name)).config
        check_base(config, "aa", "x")
        with pytest.raises(UserError, match=r"x was trained on another base model: their/model"):
            check_base(config, "bb", "x")
    save_peft(tmp_path / "other", layers("model.layers.2.mlp.up_proj"), LORA, "b")
    check_base(read(str(tmp_path / "other")).config, "bb", "x")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": None}, "lacks r"),
        *(({"r": value}, "has r .*, expected a whole number above 0") for value in ("8", [8], 8.0, True, 0, 10**400)),
        *(
            ({"lora_alpha": value}, "has lora_alpha .*, expected a finite number but 0")
            for value in ("16", [16], float("nan"), True, 0, 10**400)
        ),
        ({"use_rslora": "no"}, 'use_rslora "no", expected true or false'),
        ({"use_dora": 1}, "use_dora 1, expected true or false"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"bias": "all"}, "bias=all"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ],
)
def test_what_mlx_lm_has_no_word_for(changes: dict[str, Any], said: str) -> None:
    assert mlx_config(PEFT, ["a.0.b"])["lora_parameters"]["scale"] == 1.5
    with pytest.raises(UserError, match=said):
        mlx_config({**PEFT, **changes}, ["a.0.b"])


def test_other_tensors_are_refused() -> None:
    theirs, _ = to_peft(layers("model.layers.0.mlp.up_proj"), LORA, "b")
    assert from_peft(theirs)
    with pytest.raises(UserError, match=r"1 of its tensors .*lm_head"):
        from_peft({**theirs, "base_model.model.lm_head.weight": np.ones((2, 2))})
