"""The architectures that users bring: each trains packed, in parts, and reloads in stock mlx_lm."""

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lora_core import saved
from lora_core import split as splitting
from lora_core.adapters import activated, packable
from lora_core.config import TrainConfig
from lora_core.engine import Engine
from lora_core.head import _linear_head, head_losses
from lora_core.layers import Active
from lora_core.split import Split, Whole, choose_split
from lora_core.trial import TrialSpec
from tests.lora_core.architectures import ALL, MIXTURES, write_model
from tests.lora_core.helpers import bits_are_promised, losses, new_engine, new_spec, run, same_result

SETTINGS = {"iters": 4, "eval_every": 2, "learning_rate": 2e-2}
ROWS = {"train": 6, "valid": 3}


@dataclass
class Trained:
    """Two trials of one architecture from an engine with two slots."""

    kind: str
    folder: Path
    engine: Engine
    specs: list[TrialSpec]


@pytest.fixture(scope="module", params=ALL)
def trained(request, tmp_path_factory) -> Trained:
    home = tmp_path_factory.mktemp(request.param)
    folder = write_model(home / "model", request.param)
    engine = new_engine(2, str(folder), **ROWS)
    specs = [new_spec(home, f"packed-{rank}", rank=rank, scale=20.0, **SETTINGS) for rank in (4, 6)]
    run(engine, *specs)
    return Trained(request.param, folder, engine, specs)


def some_tokens(seed: int = 1) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, 250, (2, 24)))


def adapted_logits(engine: Engine, spec: TrialSpec) -> np.ndarray:
    """Logits with the saved adapter read as plain arrays and put into our own layers."""
    config = TrainConfig.from_dict(spec.config)
    tensors = mx.load(f"{spec.folder}/adapters/adapters.safetensors")
    sites = [site for site in engine.sites if f"{name_of(engine, site)}.lora_a" in tensors]
    multiplier = config.lora_parameters.multiplier
    actives = []
    for site in sites:
        a, b = (tensors[f"{name_of(engine, site)}.lora_{letter}"] for letter in "ab")
        if a.ndim == 3:  # experts: mlx_lm's layout is the transpose of ours
            a, b = a.swapaxes(1, 2), b.swapaxes(1, 2)
        actives.append(Active(a[None], multiplier * b[None]))
    with activated(sites, actives):
        return np.array(engine.base.model(some_tokens()))


def name_of(engine: Engine, site) -> str:
    return f"{engine.split.block_name(site.layer)}.{site.key}"


def test_it_is_packed_or_says_why(trained):
    if trained.kind in MIXTURES:
        assert trained.engine.slots == 1 and not packable(trained.engine.sites)
        assert [note for note in trained.engine.notes if "one at a time" in note and "experts" in note]
    else:
        assert trained.engine.slots == 2 and trained.engine.notes == []


def test_split_equals_whole(trained):
    model = trained.engine.base.model
    split, note = choose_split(model)
    assert (type(split), note) == (Split, None)
    tokens, whole = some_tokens(), np.array(model(some_tokens()))
    for boundary in range(len(split.blocks) + 1):
        hidden = split.prefix(tokens, boundary) if boundary else None
        parts = split.head(split.suffix(tokens, hidden, boundary))
        np.testing.assert_allclose(np.array(parts), whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_head_and_its_gradient_equal_autograd_through_the_head(trained):
    split = trained.engine.split
    assert (_linear_head(split) is None) == (trained.kind == "gemma2")  # it soft-caps its logits
    final = split.suffix(some_tokens(), None, 0)
    hidden = final.reshape(-1, final.shape[-1])[:20]
    targets = some_tokens(2).reshape(-1)[: len(hidden)]

    def plain(values):
        return nn.losses.cross_entropy(split.head(values[None])[0], targets).sum()

    ours, gradient = mx.value_and_grad(lambda values: head_losses(split)[0](values, targets).sum())(hidden)
    expected, expected_gradient = mx.value_and_grad(plain)(hidden)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    np.testing.assert_allclose(np.array(gradient), np.array(expected_gradient), rtol=0, atol=1e-5)


def test_gradient_of_a_block_equals_autograd_through_the_whole_model(trained):
    split, tokens = trained.engine.split, some_tokens()
    targets = some_tokens(2).reshape(-1)
    model, block, losses_of = split.model, split.blocks[1], head_losses(split)[0]

    def parts():
        final = split.suffix(tokens, split.prefix(tokens, 1), 1)
        return losses_of(final.reshape(-1, final.shape[-1]), targets).mean()

    def whole():
        return nn.losses.cross_entropy(model(tokens).reshape(len(targets), -1), targets).mean()

    block.unfreeze()
    try:
        found, expected = (dict(tree_flatten(nn.value_and_grad(block, loss)()[1])) for loss in (parts, whole))
    finally:
        block.freeze()
    assert len(found) >= 6
    for name, gradient in expected.items():
        np.testing.assert_allclose(np.array(found[name]), np.array(gradient), rtol=0, atol=1e-5, err_msg=name)


def test_loss_starts_at_the_base_model_and_goes_down(trained):
    model, _ = mlx_lm.load(str(trained.folder))
    total = count = 0.0
    for row in trained.engine.data.valid:
        logits = model(mx.array(row.tokens[None, :-1]))[0]
        each = nn.losses.cross_entropy(logits, mx.array(row.tokens[1:]))
        total += (each * mx.array(row.counts[1:])).sum().item()
        count += row.counts[1:].sum()
    for spec in trained.specs:
        (_, first, _), *_, (_, last, _) = losses(spec)
        assert first == pytest.approx(total / count, rel=1e-5)
        assert last < 0.95 * first


def test_saved_adapter_gives_equal_logits_in_stock_mlx_lm(trained):
    for spec in trained.specs:
        stock, _ = mlx_lm.load(str(trained.folder), adapter_path=f"{spec.folder}/adapters")
        ours, base = adapted_logits(trained.engine, spec), np.array(trained.engine.base.model(some_tokens()))
        assert np.abs(ours - base).max() > 0.05
        np.testing.assert_allclose(np.array(stock(some_tokens())), ours, rtol=0, atol=1e-4)


def test_fused_model_gives_equal_logits(trained, tmp_path):
    spec = trained.specs[0]
    config = TrainConfig.from_dict(spec.config)
    saved.fuse(trained.engine, Path(spec.folder) / "adapters", config, tmp_path / "fused")
    fused, _ = mlx_lm.load(str(tmp_path / "fused"))
    expected = adapted_logits(trained.engine, spec)
    np.testing.assert_allclose(np.array(fused(some_tokens())), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@bits_are_promised
def test_packed_equals_alone(trained, tmp_path):
    for spec in trained.specs:
        alone = new_spec(tmp_path, spec.name, rank=spec.config["lora_parameters"]["rank"], scale=20.0, **SETTINGS)
        run(new_engine(1, str(trained.folder), **ROWS), alone)
        assert same_result(alone, spec)


class Unskippable(splitting._Skip):
    """A block that cannot be left out: the model looks for something that only real blocks give."""

    def __call__(self, *_, **__):
        raise TypeError("this block cannot be skipped")


def test_a_model_that_cannot_be_split_trains_all_the_same(monkeypatch, tmp_path):
    parts, whole = new_spec(tmp_path, "parts", **SETTINGS), new_spec(tmp_path, "whole", **SETTINGS)
    run(new_engine(1, **ROWS), parts)
    monkeypatch.setattr(splitting, "_Skip", Unskippable)
    engine = new_engine(1, **ROWS)
    assert isinstance(engine.split, Whole)
    assert engine.notes == [
        "The model does not run in parts (this block cannot be skipped): frozen blocks run at every step."
    ]
    run(engine, whole)
    flat = [np.array([row[1:] for row in losses(spec)[1:]]) for spec in (parts, whole)]
    np.testing.assert_allclose(flat[0], flat[1], rtol=1e-5)
    names = [set(mx.load(f"{spec.folder}/adapters/adapters.safetensors")) for spec in (parts, whole)]
    assert names[0] == names[1]
