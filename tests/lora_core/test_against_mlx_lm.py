"""Our steps against mlx_lm's own trainer, and our files in its loader: the same model, batches and numbers."""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.trainer import TrainingArgs, train
from mlx_lm.tuner.utils import linear_to_lora_layers

from lora_core import saved
from lora_core.adapter_folder import read
from lora_core.adapters import Draw, activated, initial
from lora_core.config import TrainConfig
from lora_core.layers import Active
from tests.lora_core.helpers import losses, run, weights

STEPS = 20
RATE = 2e-3
SETTINGS = {
    "rank": 8, "scale": 4.0, "scaling": "direct", "learning_rate": RATE, "iters": STEPS, "eval_every": 1,
    "warmup": 0.0, "schedule": "constant", "grad_clip": None,
}  # fmt: skip


class Losses:
    """mlx_lm's callback: the training loss of every step."""

    def __init__(self):
        self.seen = []

    def on_train_loss_report(self, info):
        self.seen.append(info["train_loss"])


def stock_loss(model, inputs, positions, targets, weights):
    logits = model(inputs)
    chosen = logits.reshape(-1, logits.shape[-1])[positions]
    counted = weights.sum()  # once: mx.compile fails on two equal outputs
    return (nn.losses.cross_entropy(chosen, targets) * weights).sum() / counted, counted


def stock_run(engine, spec, folder, scale=4.0, bias_correction=True):
    """The spec's trial in mlx_lm: losses by step, adapters by name."""
    config = TrainConfig.from_dict(spec.config)
    model, _ = mlx_lm.load(engine.base.info.folder)
    prepare(model, engine, spec, config, scale)
    feed = engine.feed(config)
    batches = [feed.train[index] for index in engine._order(spec, config, feed)]

    def iterate(**_):
        for b in batches:
            yield tuple(map(mx.array, (b.inputs, b.positions, b.targets, b.weights)))

    callback = Losses()
    optimizer = optim.AdamW(RATE, weight_decay=0.01, bias_correction=bias_correction)
    arguments = TrainingArgs(iters=STEPS, steps_per_report=1, adapter_file=str(folder / "stock.safetensors"))
    train(model, optimizer, [], None, arguments, stock_loss, iterate, callback)
    trained = tree_flatten(model.trainable_parameters())
    return callback.seen, {name: np.array(value) for name, value in trained}


def prepare(model, engine, spec, config, scale):
    """Lets of mlx_lm's model that train which the trial trains, from the same values."""
    model.freeze()
    if config.train_type == "full":
        for part in [model] if config.num_layers == "all" else model.layers[-config.num_layers :]:
            part.unfreeze()
        return
    settings = {"rank": 8, "scale": scale, "dropout": 0.0}
    linear_to_lora_layers(model, 2, settings, use_dora=config.train_type == "dora")
    layers = dict(model.named_modules())
    for site in engine.sites:
        if site.layer >= 2:
            draw = Draw(config.lora_parameters, config.seed, spec.repeat)
            a = initial([site], [draw], draw.lora.rank)[0][0, 0]
            layers[f"model.layers.{site.layer}.{site.key}"].lora_a = mx.array(a)


def apart(engine, spec, folder, **changes):
    """Largest relative difference of losses, and largest absolute difference of adapters."""
    theirs, their_weights = stock_run(engine, spec, folder, **changes)
    run(engine, spec)
    ours, our_weights = [loss for _, _, loss in losses(spec)[1:]], weights(spec)
    assert our_weights.keys() == their_weights.keys()
    of_losses = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    return of_losses, max(float(np.abs(our_weights[n] - their_weights[n]).max()) for n in our_weights)


@pytest.mark.parametrize("train_type, layers", [("lora", 2), ("dora", 2), ("full", 2), ("full", "all")])
def test_twenty_steps_equal_mlx_lm(make_engine, make_spec, tmp_path, train_type, layers):
    spec = make_spec("ours", **SETTINGS, train_type=train_type, num_layers=layers)
    of_losses, of_weights = apart(make_engine(1), spec, tmp_path)
    assert of_losses < 1e-5
    assert of_weights < 1e-4


@pytest.mark.parametrize(
    "train_type, change", [("lora", {"scale": 4.0 / 8}), ("lora", {"bias_correction": False}),
                           ("full", {"bias_correction": False})],
)  # fmt: skip
def test_another_mathematics_is_noticed(make_engine, make_spec, tmp_path, train_type, change):
    """mlx_lm multiplying by α/r where we multiply by α, or without the bias correction of Adam."""
    spec = make_spec("ours", **SETTINGS, train_type=train_type)
    of_losses, of_weights = apart(make_engine(1), spec, tmp_path, **change)
    assert of_losses > 1e-5 and of_weights > 1e-4


def logits(model, seed=0):
    tokens = mx.array(np.random.default_rng(seed).integers(0, 250, (2, 24)))
    return np.array(model(tokens))


def our_logits(engine, spec):
    """Logits of the base model with the trial's adapter in our own layers."""
    config = TrainConfig.from_dict(spec.config)
    sites = engine.learned(config).of(config)
    actives = []
    for site, (a, b, *m) in zip(
        sites, engine.learned(config).load(read(f"{spec.folder}/adapters"), config).values(), strict=True
    ):
        a, b = a[None], config.lora_parameters.multiplier * b[None]
        actives.append(Active(a, b, gain=m[0] / site.module.lengths(a, b) if m else None))
    with activated(sites, actives):
        return logits(engine.base.model)


CASES = [
    {"rank": 8, "scale_ratio": 3.0},
    {"rank": 4, "scaling": "alpha_over_sqrt_r", "keys": ["self_attn.v_proj"]},
    {"rank": 3, "num_layers": "all", "dropout": 0.1},
    {"rank": 3, "num_layers": 3, "train_type": "dora", "scale_ratio": 2.0},
]


@pytest.mark.parametrize("case", CASES)
def test_saved_adapter_gives_equal_logits_in_stock_mlx_lm(make_engine, make_spec, case):
    engine, spec = make_engine(1), make_spec("trial", **case)
    run(engine, spec)
    ours, base = our_logits(engine, spec), logits(mlx_lm.load(engine.base.info.folder)[0])
    stock, _ = mlx_lm.load(engine.base.info.folder, adapter_path=f"{spec.folder}/adapters")
    assert np.abs(ours - base).max() > 0.01
    np.testing.assert_allclose(logits(stock), ours, rtol=0, atol=1e-5)


def test_wrong_multiplier_in_the_file_is_noticed(make_engine, make_spec):
    engine, spec = make_engine(1), make_spec("trial", rank=8, scale_ratio=3.0)
    run(engine, spec)
    file = Path(spec.folder) / "adapters" / "adapter_config.json"
    config = json.loads(file.read_text())
    config["lora_parameters"]["scale"] = config["lora_parameters"]["alpha"]
    file.write_text(json.dumps(config))
    stock, _ = mlx_lm.load(engine.base.info.folder, adapter_path=str(file.parent))
    assert np.abs(logits(stock) - our_logits(engine, spec)).max() > 1e-2


@pytest.mark.parametrize("train_type", ["lora", "dora"])
def test_fused_model_gives_equal_logits(make_engine, make_spec, tmp_path, train_type):
    engine, spec = make_engine(1), make_spec("trial", rank=8, scale_ratio=3.0, train_type=train_type)
    run(engine, spec)
    before = our_logits(engine, spec)
    saved.fuse(engine, Path(spec.folder) / "adapters", TrainConfig.from_dict(spec.config), tmp_path / "fused")
    fused, _ = mlx_lm.load(str(tmp_path / "fused"))
    np.testing.assert_allclose(logits(fused), before, rtol=0, atol=1e-4)
    # The base model is itself again, and would not have passed.
    np.testing.assert_array_equal(our_logits(engine, spec), before)
    assert np.abs(logits(engine.base.model) - before).max() > 1e-2
