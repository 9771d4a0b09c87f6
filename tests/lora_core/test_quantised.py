"""Base models in fewer bits: what is made and kept, what is left alone or refused, and training over them."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest

from lora_core import models, saved
from lora_core.answers import answers
from lora_core.config import TrainConfig
from lora_core.engine import Engine
from lora_core.errors import UserError
from lora_core.learned import DORA_NOTE
from lora_core.models import loading, tiny
from tests.lora_core.helpers import demo, losses, new_spec, run

NAMES = ["4bit", "6bit", "8bit", "mxfp4"]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_SWEEP_CACHE", str(tmp_path / "cache"))


def logits(model: nn.Module) -> np.ndarray:
    return np.array(model(mx.array(np.random.default_rng(0).integers(0, 250, (2, 24)))))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_made_once_and_is_what_mlx_lm_loads(name: str) -> None:
    base = models.load("builtin:tiny", name)
    assert any(note.startswith("Quantised to") for note in base.notes)
    assert base.info.bits == int(name[0] if name[0].isdigit() else 4) and base.info.dtype == "float32"
    assert f"CPU: the {base.info.bits}-bit base is dequantised and trained in float32." in base.notes
    assert not any(note.startswith("Quantised") for note in models.load("builtin:tiny", name).notes)
    stock = mlx_lm.load(base.info.folder)[0]
    assert isinstance(stock.layers[0].mlp.up_proj, nn.QuantizedLinear)
    np.testing.assert_allclose(logits(base.model), logits(stock), rtol=0, atol=1e-3)
    assert np.abs(logits(models.load("builtin:tiny").model) - logits(stock)).max() > 1e-2


def test_fewer_bits_are_further_from_the_model() -> None:
    whole = logits(models.load("builtin:tiny").model)
    apart = [np.abs(logits(models.load("builtin:tiny", name).model) - whole).mean() for name in NAMES[:3]]
    assert apart[0] > 2 * apart[1] > 4 * apart[2] > 0


def test_a_model_that_has_these_bits_is_left_alone_and_another_refused() -> None:
    folder = models.load("builtin:tiny", "4bit").info.folder
    again = models.load(folder, "4bit")
    assert again.info.folder == folder and "left as it is" in again.notes[0]
    for wanted, size in (("8bit", None), ("4bit", 32), ("mxfp4", None)):
        with pytest.raises(UserError, match=r"quantised already \(4 bits, group size 64\)"):
            models.load(folder, wanted, size)


def test_a_width_that_no_group_fits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "CONFIG", {**tiny.CONFIG, "hidden_size": 48, "intermediate_size": 80})
    (tmp_path / "odd").mkdir()
    tiny.write(tmp_path / "odd")
    with pytest.raises(UserError, match="multiple of quantization_group_size=64"):
        models.load(str(tmp_path / "odd"), "4bit")
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize("train_type", ["lora", "dora"])
@pytest.mark.parametrize("name", NAMES)
def test_training_over_it_equals_training_dequantised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, train_type: str
) -> None:
    """Here a CPU trains over the bits themselves, as a GPU does. Over the whole model losses would be others."""

    def trained(label: str, quantization: str | None) -> tuple[str, np.ndarray]:
        engine = Engine(models.load("builtin:tiny", quantization), demo(), 1)
        spec = new_spec(tmp_path, label, train_type=train_type, eval_rows=6)
        run(engine, spec)
        kind = type(engine.sites[0].module.linear).__name__
        return kind, np.array([row[1] for row in losses(spec)])

    dequantised, whole = trained("dequantised", name), trained("whole", None)
    monkeypatch.setattr(loading, "_to_train_dtype", lambda *_: [])
    quantised = trained("quantised", name)
    assert (quantised[0], dequantised[0]) == ("QuantizedLinear", "Linear")
    np.testing.assert_allclose(quantised[1], dequantised[1], rtol=1e-4)
    assert np.abs(whole[1] / dequantised[1] - 1).max() > 1e-3


def test_it_answers_also_with_what_mlx_lm_cannot_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_to_train_dtype", lambda *_: [])
    base = models.load("builtin:tiny", "6bit")
    engine, spec = Engine(base, demo(), 1), new_spec(tmp_path, "trial", train_type="dora", eval_rows=6)
    run(engine, spec)
    adapter, config = Path(spec.folder) / "adapters", TrainConfig.from_dict(spec.config)
    saved.fuse(engine, adapter, config, tmp_path / "merged")
    with_it, merged, plain = (
        answers(base, path, ["7+1="], 8)
        for base, path in (
            (models.load(base.info.folder), str(adapter)),
            (models.load(str(tmp_path / "merged")), None),
            (models.load(base.info.folder), None),
        )
    )
    assert with_it == merged != plain


@pytest.mark.parametrize("train_type", ["lora", "dora"])
@pytest.mark.parametrize("name", NAMES)
def test_stock_mlx_lm_loads_the_adapter_over_it(tmp_path: Path, name: str, train_type: str) -> None:
    engine = Engine(models.load("builtin:tiny", name), demo(), 1)
    spec = new_spec(tmp_path, "trial", train_type=train_type, eval_rows=6)
    run(engine, spec)
    adapters = Path(spec.folder) / "adapters"
    saved.fuse(engine, adapters, TrainConfig.from_dict(spec.config), tmp_path / "merged")
    merged = logits(mlx_lm.load(str(tmp_path / "merged"))[0])
    if (name, train_type) == ("6bit", "dora"):
        assert DORA_NOTE in engine.notes
        with pytest.raises(ValueError, match="incompatible"):
            mlx_lm.load(engine.base.info.folder, adapter_path=str(adapters))
    else:
        assert DORA_NOTE not in engine.notes
        stock = mlx_lm.load(engine.base.info.folder, adapter_path=str(adapters))[0]
        np.testing.assert_allclose(logits(stock), merged, rtol=0, atol=1e-4)
    assert np.abs(logits(engine.base.model) - merged).max() > 1e-2
