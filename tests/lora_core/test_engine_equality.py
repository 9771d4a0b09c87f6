"""A trial's result is its own: the same bits alone, in any slot, beside any neighbours, after a refill.

On Linux x86-64 with MKL in its strict mode. Each way of breaking this on purpose must be noticed.
"""

from dataclasses import replace

import mlx.core as mx
import pytest

from lora_core import split as splitting
from lora_core.dropout import Dropout
from lora_core.layers import Active
from lora_core.pack import Pack
from lora_core.step import Computation
from tests.lora_core.helpers import bits_are_promised, losses, new_engine, new_spec, run, same_result

pytestmark = bits_are_promised

SETTINGS = [
    {"rank": 3, "learning_rate": 3e-2},
    {"rank": 8, "scale": 4.0, "weight_decay": 0.1},
    {"rank": 16, "dropout": 0.2, "warmup": 0.5},
    {"rank": 5, "num_layers": 3, "schedule": "linear"},
    {"rank": 8, "keys": ["self_attn.q_proj", "mlp.down_proj"], "repeat": 1},
    {"rank": 4, "dropout": 0.1, "dropout_on": "input", "iters": 4},
    {"rank": 6, "dropout": 0.3, "seed": 1},
    {"rank": 40, "num_layers": "all", "dropout": 0.1, "grad_checkpoint": True},
    {"rank": 4, "num_layers": 1, "keys": ["mlp.up_proj"], "batch_size": 2},
    {"rank": 5, "dropout": 0.2, "grad_accumulation": 2},
    {"rank": 12, "num_layers": 3, "grad_accumulation": 2, "grad_clip": 0.1},
    {"train_type": "dora", "rank": 5, "dropout": 0.2},
    {"train_type": "dora", "rank": 20, "num_layers": 3, "dropout_on": "delta"},
    {"train_type": "dora", "rank": 4, "keys": ["self_attn.v_proj"], "grad_checkpoint": True},
    {"train_type": "dora", "rank": 6, "keys": ["mlp.up_proj"]},
]
ALL = range(len(SETTINGS))
PAIR = [2, 6]  # two that share a pack and both have dropout


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Each setting's trial, run with nobody beside it."""
    folder = tmp_path_factory.mktemp("alone")
    specs = [new_spec(folder, f"alone-{i}", **settings) for i, settings in enumerate(SETTINGS)]
    for spec in specs:
        run(new_engine(1), spec)
    return specs


def equal(alone, folder, engine, which=ALL):
    """Whether the settings named give in this engine, together, what they gave alone."""
    specs = [new_spec(folder, f"packed-{i}", **SETTINGS[i]) for i in which]
    run(engine, *specs)
    return [same_result(alone[i], spec) for i, spec in zip(which, specs, strict=True)]


@pytest.mark.parametrize("slots", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_packed_equals_alone(alone, tmp_path, slots):
    assert all(equal(alone, tmp_path, new_engine(slots)))


def test_slot_and_neighbours_do_not_matter(alone, tmp_path):
    assert all(equal(alone, tmp_path, new_engine(4), ALL[::-1]))


def test_prefix_cache_does_not_matter(alone, tmp_path):
    engine = new_engine(2)
    engine.prefixes.budget = engine.prefixes.disk_budget = 0
    assert all(equal(alone, tmp_path, engine, PAIR))


def test_diverging_neighbour_leaves_bits_alone(alone, make_spec):
    good, bad = make_spec("good", **SETTINGS[1]), make_spec("bad", learning_rate=1e30, grad_clip=None)
    _, record = run(new_engine(2), good, bad)
    assert same_result(alone[1], good)
    assert (record.state, record.reason) == ("failed", "diverged")


def test_one_depth_at_a_time_does_not_matter(alone, tmp_path):
    engine = new_engine(4)
    engine.joins = False
    assert all(equal(alone, tmp_path, engine))


def test_prefixes_on_disk_do_not_matter(alone, tmp_path):
    engine = new_engine(2)
    engine.prefixes.budget = 0
    assert all(equal(alone, tmp_path, engine, PAIR)) and engine.prefixes.disk_used > 0


def test_rows_that_join_at_another_block_are_noticed(alone, tmp_path, monkeypatch):
    class Early(splitting._Join):
        def __call__(self, hidden, *rest, **named):
            return self._module(mx.concatenate([hidden, self._rows]), *rest, **named)

    engine = new_engine(2)
    monkeypatch.setattr(splitting, "_Join", Early)
    assert not any(equal(alone, tmp_path, engine, [3, 1]))


def swapped_a(step):
    def swapped(self, groups, traits, state, *rest):
        return step(self, groups, traits, [((a[:, ::-1], b), *moments) for (a, b), *moments in state], *rest)

    return swapped


def divided_loss(step):
    def divided(self, *arguments):
        losses, slots = self.losses_with_gradient, arguments[-1][0].targets.shape[0]
        self.losses_with_gradient = lambda *given: losses(*given) / slots
        try:
            return step(self, *arguments)
        finally:
            self.losses_with_gradient = losses

    return divided


def shared_mask(drawn):
    return lambda self, shape: drawn(replace(self, keys=mx.broadcast_to(self.keys[:1], self.keys.shape)), shape)


def shifted_keys(keys):
    return lambda self, slot, *rest: keys(self, slot, *rest) + self.slots.index(slot)


BREAKS = {
    "two slots' A are swapped": (Computation, "step", swapped_a),
    "the loss is divided by the number of slots": (Computation, "step", divided_loss),
    "the dropout mask is the first slot's": (Dropout, "drawn", shared_mask),
    "dropout keys are shifted by the slot": (Pack, "_keys", shifted_keys),
    "nothing is broken": (Pack, "_keys", lambda keys: keys),
}


@pytest.mark.parametrize("name", BREAKS)
def test_breaking_it_is_noticed(alone, tmp_path, monkeypatch, name):
    owner, attribute, broken = BREAKS[name]
    monkeypatch.setattr(owner, attribute, broken(getattr(owner, attribute)))
    assert all(equal(alone, tmp_path, new_engine(2), PAIR)) == (name == "nothing is broken")


def test_dropping_the_mask_is_noticed(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(Active, "kept", lambda self, shape: (None, None))
    assert equal(alone, tmp_path, new_engine(2), [1, *PAIR]) == [True, False, False]


def test_padding_of_the_rank_stays_zero(make_spec):
    engine = new_engine(2)
    engine.start(make_spec("small", rank=3))
    engine.start(make_spec("large", rank=16))
    for _ in range(4):
        engine.advance()
    _, used, _ = engine.running[0]
    for (a, b), *_ in used.stacks().state.values():
        assert not mx.any(a[:, 0, :, 3:]).item() and not mx.any(b[:, 0, 3:]).item()
        assert mx.any(a[:, 0, :, :3]).item() and mx.any(b[:, 0, :3]).item()


def test_losses_of_different_settings_differ(alone):
    assert len({str(losses(spec)) for spec in alone}) == len(alone)
