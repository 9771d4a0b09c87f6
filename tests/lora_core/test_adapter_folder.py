"""What is read is what was saved, or it is refused."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from lora_core.adapter_folder import check_base, read, save_adapter
from lora_core.errors import UserError

TENSORS = {"layers.0.q.lora_a": np.array([[0.5, -2.0]], np.float32)}


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


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_every_float_is_read(tmp_path: Path, dtype: mx.Dtype) -> None:
    values = mx.array([1.0, -0.375, 3e-5]).astype(dtype)
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), {"m": values})
    found = read(str(tmp_path)).tensors["m"]
    assert found.dtype == np.float32 and np.array_equal(found, np.array(values.astype(mx.float32)))


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
