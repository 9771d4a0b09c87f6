"""Training the model's own weights: what is trained and saved, and that the shared base is itself again afterwards."""

from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import load_adapters

from lora_core import full, saved
from lora_core.adapter_folder import read
from lora_core.config import TrainConfig
from lora_core.engine import Engine
from lora_core.errors import UserError
from lora_core.records import load_trial
from lora_core.trial import TrialSpec
from tests.lora_core.helpers import bits_are_promised, losses, new_engine, new_spec, run, same_result, weights


def logits(model) -> np.ndarray:
    return np.array(model(mx.array(np.random.default_rng(0).integers(0, 250, (2, 24)))).astype(mx.float32))


def trained_logits(engine: Engine, spec: TrialSpec) -> np.ndarray:
    config = TrainConfig.from_dict(spec.config)
    learned = engine.learned(config).load(read(f"{spec.folder}/adapters"), config)
    with full.carrying(engine.learned(config).of(config), [weight for (weight,) in learned.values()]):
        return logits(engine.base.model)


def stock(engine: Engine, **where):
    return mlx_lm.load(engine.base.info.folder, **where)[0]


@pytest.mark.parametrize("layers, top_only", [(2, True), ("all", False)])
def test_what_is_saved_is_what_was_trained(make_spec, layers, top_only) -> None:
    engine, spec = new_engine(), make_spec("full", train_type="full", num_layers=layers)
    (record,) = run(engine, spec)
    found, base = weights(spec), dict(tree_flatten(stock(engine).parameters()))
    expected = {name for name in base if not top_only or name.startswith(("model.layers.2.", "model.layers.3."))}
    assert found.keys() == expected
    assert all(np.abs(found[name] - np.array(base[name])).max() > 1e-3 for name in found)
    assert record.metrics["trainable_params"] == sum(array.size for array in found.values())
    assert "scale_ratio" not in record.metrics and record.metrics["best_val_loss"] < losses(spec)[0][1]


@pytest.mark.parametrize("layers", [2, "all"])
def test_stock_mlx_lm_and_the_merged_model_give_equal_logits(make_spec, tmp_path: Path, layers) -> None:
    engine, spec = new_engine(), make_spec("full", train_type="full", num_layers=layers)
    run(engine, spec)
    ours, base = trained_logits(engine, spec), logits(engine.base.model)
    assert np.abs(ours - base).max() > 0.01
    np.testing.assert_array_equal(base, logits(stock(engine)))
    loaded = stock(engine, adapter_path=f"{spec.folder}/adapters")
    np.testing.assert_allclose(logits(loaded), ours, rtol=0, atol=1e-5)
    saved.fuse(engine, Path(spec.folder) / "adapters", TrainConfig.from_dict(spec.config), tmp_path / "merged")
    np.testing.assert_allclose(logits(mlx_lm.load(str(tmp_path / "merged"))[0]), ours, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(logits(engine.base.model), base)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_of_a_base_in_half_precision_mlx_lm_loads_what_was_evaluated(make_spec, dtype: mx.Dtype) -> None:
    engine, spec = new_engine(), make_spec("full", train_type="full")
    engine.base.model.set_dtype(dtype)
    (record,) = run(engine, spec)
    loaded, folder = stock(engine), f"{spec.folder}/adapters"
    loaded.set_dtype(dtype)
    base = logits(loaded)
    load_adapters(loaded, folder)
    ours = trained_logits(engine, spec)
    assert np.array_equal(logits(loaded), ours) and not np.array_equal(base, ours)
    loaded.layers[-1].set_dtype(mx.float32)
    assert not np.array_equal(logits(loaded), ours)  # the same numbers, but rounded elsewhere
    again = make_spec("again", train_type="full", resume_adapter_file=folder)
    run(engine, again)
    assert losses(again)[0][1] == pytest.approx(record.metrics["best_val_loss"], rel=1e-6)


@contextmanager
def keeping(weights, arrays):
    for weight, array in zip(weights, arrays, strict=True):
        weight.module[weight.attribute] = array
    yield


@bits_are_promised
@pytest.mark.parametrize("restored", [True, False])
def test_trials_beside_and_after_it_are_their_own(tmp_path: Path, monkeypatch, restored: bool) -> None:
    """And it is its own beside them. A base that is not put back is noticed."""
    settings = [{"train_type": "full", "num_layers": layers} for layers in ("all", 2)] + [{"rank": 4}]
    alone = [new_spec(tmp_path, f"alone-{i}", **each) for i, each in enumerate(settings)]
    for spec in alone:
        run(new_engine(), spec)
    if not restored:
        monkeypatch.setattr(full, "carrying", keeping)
    engine = new_engine(2)
    shared = [new_spec(tmp_path, f"shared-{i}", **each) for i, each in enumerate(settings)]
    run(engine, *shared)
    assert all(same_result(a, b) for a, b in zip(alone, shared, strict=True)) == restored


def test_it_starts_from_saved_weights(make_spec) -> None:
    engine, first = new_engine(), make_spec("first", train_type="full")
    run(engine, first)
    again = make_spec("again", train_type="full", resume_adapter_file=f"{first.folder}/adapters")
    run(engine, again)
    assert losses(again)[0][1] == pytest.approx(load_trial(Path(first.folder)).metrics["best_val_loss"], rel=1e-6)
    with pytest.raises(UserError, match="9 missing"):
        deeper = make_spec("deeper", train_type="full", num_layers=3, resume_adapter_file=f"{first.folder}/adapters")
        engine.start(deeper)


def test_saved_weights_are_looked_at_before_the_number_of_blocks_is_known(make_spec) -> None:
    """A model has fewer than num_layers asks for."""
    engine, first = new_engine(), make_spec("first", train_type="full", num_layers=4)
    run(engine, first)
    config = {"train_type": "full", "num_layers": 16, "resume_adapter_file": f"{first.folder}/adapters"}
    engine.check(TrainConfig.from_dict(make_spec("again", **config).config))
    assert len(engine.learned(TrainConfig(train_type="full")).of(TrainConfig(num_layers=16))) > 0


def test_a_diverging_one_ends_and_keeps_nothing(make_spec) -> None:
    bad, good = make_spec("bad", train_type="full", learning_rate=1e30, grad_clip=None), make_spec("good")
    ended, other = run(new_engine(2), bad, good)
    assert (ended.state, ended.reason, ended.adapter) == ("failed", "diverged", None)
    assert other.state == "complete"


def test_a_quantised_base_is_refused(make_spec) -> None:
    engine = new_engine()
    engine.base.info.bits = 4
    with pytest.raises(UserError, match="quantised to 4 bits"):
        engine.start(make_spec("full", train_type="full"))
