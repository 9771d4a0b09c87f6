"""What is read is what was saved, or it is refused."""

import json
import tracemalloc
from contextlib import nullcontext
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from lora_core.adapter_folder import check_base, digest, read, save_adapter
from lora_core.errors import UserError

TENSORS = {
    "layers.0.q.lora_a": np.array([[0.5, -2.0]], np.float32),
    "layers.0.q.lora_b": np.array([[1.0], [3.0]], np.float32),
}


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    save_adapter(tmp_path, TENSORS, {"model": "m"})
    assert np.array_equal(read(str(tmp_path)).tensors["layers.0.q.lora_a"], TENSORS["layers.0.q.lora_a"])
    file = tmp_path / "adapters.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="not the file that was saved"):
        read(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"model": "m"}))
    assert read(str(tmp_path))  # as mlx_lm writes it, without a sha256


def test_the_digest_is_of_weights_and_settings(tmp_path: Path) -> None:
    """Wherever they lie: what multiplies B·A is among the settings."""

    def saved(name: str, b: float, scale: float) -> str:
        tensors = TENSORS | {"layers.0.q.lora_b": np.array([[1.0], [b]], np.float32)}
        save_adapter(tmp_path / name, tensors, {"lora_parameters": {"scale": scale}})
        return digest(str(tmp_path / name))

    one = saved("one", 3.0, 2.0)
    assert one == saved("same", 3.0, 2.0) == digest(str(tmp_path / "one" / "adapters.safetensors"))
    assert len({one, saved("weights", 4.0, 2.0), saved("scale", 3.0, 4.0)}) == 3


def test_the_digest_of_a_large_file_takes_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "adapters.safetensors").open("wb") as file:
        file.truncate(50_000_000)
    tracemalloc.start()
    digest(str(tmp_path))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 5_000_000


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_every_float_is_read(tmp_path: Path, dtype: mx.Dtype) -> None:
    values = mx.array([1.0, -0.375, 3e-5]).astype(dtype)
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), {"m": values})
    found = read(str(tmp_path)).tensors["m"]
    assert found.dtype == np.float32 and np.array_equal(found, np.array(values.astype(mx.float32)))


def test_the_folder_of_a_run_is_not_that_of_its_adapter(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no adapter: expected adapters\.safetensors"):
        read(str(tmp_path))
    save_adapter(tmp_path / "adapters", TENSORS, {})
    with pytest.raises(UserError, match=rf"Did you mean {tmp_path}/adapters\?"):
        read(str(tmp_path))
    with pytest.raises(UserError, match="nowhere does not exist"):
        read("nowhere")


def test_integers_are_refused(tmp_path: Path) -> None:
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), {"m": mx.array([1, 2])})
    with pytest.raises(UserError, match="safetensors file of floats"):
        read(str(tmp_path))


def test_another_base_is_refused() -> None:
    config = {"model_path": "their/model", "model_fingerprint": "aa"}
    for mine in ({}, config):
        check_base(mine, "aa", "x")
    with pytest.raises(UserError, match=r"x was trained on another base model: their/model .*aa, here bb"):
        check_base(config, "bb", "x")


SOUND = {"x.lora_a": (6, 4), "x.lora_b": (4, 5)}


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({}, "there are no weights in it"),
        ({"x.lora_a": (6, 4)}, "x has one of lora_a and lora_b, expected both"),
        ({"x.lora_b": (4, 5)}, "x has one of lora_a and lora_b, expected both"),
        (SOUND | {"x.lora_b": (3, 5)}, r"lora_a \[6, 4\] and lora_b \[3, 5\], which share no rank"),
        (SOUND | {"x.lora_a": (6,)}, "which share no rank"),
        ({"x.lora_a": (2, 4, 6), "x.lora_b": (2, 5, 3)}, "which share no rank"),
    ],
    ids=str,
)
def test_halves_of_adapters_are_refused(tmp_path: Path, shapes: dict, said: str) -> None:
    file = tmp_path / "adapters.safetensors"
    mx.save_safetensors(str(file), {name: mx.ones(shape) for name, shape in shapes.items()})
    with pytest.raises(UserError, match=said):
        read(str(file))


@pytest.mark.parametrize("shapes", [SOUND, {"x.lora_a": (2, 4, 6), "x.lora_b": (2, 5, 4)}, {"x.weight": (6,)}], ids=str)
def test_whole_ones_are_not(tmp_path: Path, shapes: dict) -> None:
    file = tmp_path / "adapters.safetensors"
    mx.save_safetensors(str(file), {name: mx.ones(shape) for name, shape in shapes.items()})
    assert {name: tensor.shape for name, tensor in read(str(file)).tensors.items()} == shapes


LORA = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 2.0}}


@pytest.mark.parametrize(
    ("kind", "extra", "said"),
    [
        ("lora", {}, None),
        ("dora", {"x.m": (5,)}, None),
        ("dora", {}, r"x has no m, expected m \[5\] with DoRA"),
        ("dora", {"x.m": (6,)}, r"x has m \[6\], expected m \[5\]"),
        ("dora", {"x.m": (5,), "y.m": (5,)}, "y has m alone, expected lora_a and lora_b"),
        ("dora", {"x.m": (5,), "y.m": (0,)}, "y has m alone"),
        ("lora", {"x.m": (5,)}, "x has m, which only DoRA has"),
        ("lora", {"x.weight": (5, 6)}, "x.weight is no part of an adapter"),
    ],
    ids=str,
)
def test_layers_have_the_parts_of_their_method(tmp_path: Path, kind: str, extra: dict, said: str | None) -> None:
    tensors = {name: np.ones(shape, np.float32) for name, shape in (SOUND | extra).items()}
    save_adapter(tmp_path, tensors, {**LORA, "fine_tune_type": kind})
    with nullcontext() if said is None else pytest.raises(UserError, match=said):
        assert read(str(tmp_path)).mlx_config["fine_tune_type"] == kind


@pytest.mark.parametrize("content", [b"null", b"[]", b'"sha256"', b"\xff\xfe", b"{", b"[" * 9**5, b"1" * 9**5])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), {n: mx.ones(shape) for n, shape in SOUND.items()})
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        read(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *(({"scale": json.loads(value)}, f"scale {value[:40]}") for value in ("NaN", "-Infinity", "true", "1" * 400)),
        ({"scale": None}, "scale null, expected a finite number"),
        ({"rank": [4]}, r"rank \[4\], its weights rank 4"),
        ({"rank": 4.0}, r"rank 4\.0, its weights rank 4"),
        ({"model_path": 7}, "model_path 7, expected text"),
        ({"model": ["m"]}, "model .* expected text"),
        ({"fine_tune_type": "qlora"}, 'fine_tune_type "qlora", expected lora, dora, full'),
        ({"fine_tune_type": ["lora"]}, r'fine_tune_type \["lora"\]'),
        ({"num_layers": "all"}, 'num_layers "all", expected a whole number'),
        *(({"dropout": value}, "dropout .* from 0 to below 1") for value in ("much", None, [0.1], True, -0.1, 1.0)),
        ({"keys": "q_proj"}, 'keys "q_proj", expected a list of names'),
        ({"keys": [1]}, r"keys \[1\]"),
    ],
)
def test_settings_of_other_types_are_refused(tmp_path: Path, changes: dict, said: str) -> None:
    tensors = {name: np.ones(shape, np.float32) for name, shape in SOUND.items()}
    known = {"dropout": 0.0, "keys": None, **LORA["lora_parameters"]}
    parameters = {key: changes.get(key, value) for key, value in known.items()}
    save_adapter(tmp_path, tensors, {})
    settings = json.dumps({**LORA, **changes, "lora_parameters": parameters})
    (tmp_path / "adapter_config.json").write_text(settings)
    stored = read(str(tmp_path))
    with pytest.raises(UserError, match=said):
        _ = stored.mlx_config
