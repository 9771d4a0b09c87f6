"""What is made again instead of kept: the same gradients in less memory, and all in its place afterwards."""

from contextlib import nullcontext
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import activations, llama

from lora_core import remade
from lora_core.engine import Engine
from lora_core.trial import TrialSpec
from tests.lora_core.helpers import new_engine, run, weights


def engine_that(makes: bool) -> Engine:
    """It makes things again, as on a GPU, or does not."""
    engine = new_engine()
    users = remade.users_of_swiglu(engine.split.blocks)
    assert users == [llama]
    engine.computation._remaking = partial(remade.noting, users) if makes else nullcontext
    return engine


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"grad_checkpoint": True},
        {"train_type": "dora", "dropout": 0.1},
        {"dropout": 0.1, "dropout_on": "input"},
    ],
)
def test_a_trial_learns_the_same(make_spec, monkeypatch, even_steps, changes):
    kept, made = (make_spec(name, iters=3, **changes) for name in ("kept", "made"))
    run(engine_that(makes=False), kept)
    run(engine_that(makes=True), made)
    assert difference(kept, made) < 1e-5  # the gated unit's gradient is another formula
    follow = remade.Recipe.follow
    monkeypatch.setattr(remade.Recipe, "follow", lambda self, after: 1.1 * follow(self, after))
    broken = make_spec("broken", iters=3, **changes)
    run(engine_that(makes=True), broken)
    assert difference(kept, broken) > 1e-3


def difference(first: TrialSpec, second: TrialSpec) -> float:
    """The largest of what two trials learned, relative to the largest value of a tensor."""
    a, b = weights(first), weights(second)
    return max(float(np.abs(a[name] - b[name]).max() / np.abs(a[name]).max()) for name in a)


def test_a_step_takes_less_memory(make_spec):
    peaks = {}
    for makes in (False, True):
        engine = engine_that(makes)
        engine.start(make_spec(f"trial-{makes}", iters=9, num_layers="all", batch_size=8))
        engine.advance()
        mx.reset_peak_memory()
        engine.advance()
        mx.synchronize()
        peaks[makes] = mx.get_peak_memory() - mx.get_active_memory()
    assert peaks[True] < 0.9 * peaks[False]


def test_the_gated_unit_is_replaced_only_meanwhile():
    with pytest.raises(ZeroDivisionError), remade.noting([llama]):
        assert llama.swiglu is not activations.swiglu
        raise ZeroDivisionError
    assert llama.swiglu is activations.swiglu
    made = mx.zeros((1,))
    assert remade.note(made, mx.exp, made) is made and remade.recipe_of(made) is None
