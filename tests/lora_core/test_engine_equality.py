"""A trial's result is its own: the same bits alone, in any slot, beside any neighbours, after a refill.

On Linux x86-64 with MKL in its strict mode. Each way of breaking this on purpose must be noticed.
"""

import platform

import mlx.core as mx
import pytest

from lora_core import adapters, backend, pack
from tests.lora_core.helpers import losses, run, same_result

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or "MKL" not in "".join(backend.prepare()),
    reason="bits are promised with MKL on Linux only",
)

SETTINGS = [
    {"rank": 3, "learning_rate": 3e-2},
    {"rank": 8, "scale": 4.0, "weight_decay": 0.1},
    {"rank": 16, "dropout": 0.2, "warmup": 0.5},
    {"rank": 5, "num_layers": 3, "schedule": "linear"},
    {"rank": 8, "keys": ["self_attn.q_proj", "mlp.down_proj"], "repeat": 1},
    {"rank": 4, "dropout": 0.1, "dropout_on": "input", "iters": 4},
]


@pytest.fixture
def alone(make_engine, make_spec):
    specs = [make_spec(f"alone-{i}", **settings) for i, settings in enumerate(SETTINGS)]
    for spec in specs:
        run(make_engine(1), spec)
    return specs


@pytest.mark.parametrize("slots", [2, 3, 6])
def test_packed_equals_alone(alone, make_engine, make_spec, slots):
    packed = [make_spec(f"packed-{i}", **settings) for i, settings in enumerate(SETTINGS)]
    run(make_engine(slots), *packed)
    assert [same_result(a, b) for a, b in zip(alone, packed, strict=True)] == [True] * len(SETTINGS)


def test_slot_and_neighbours_do_not_matter(alone, make_engine, make_spec):
    packed = [make_spec(f"packed-{i}", **settings) for i, settings in enumerate(SETTINGS)]
    run(make_engine(4), *reversed(packed))
    assert all(same_result(a, b) for a, b in zip(alone, packed, strict=True))


def test_prefix_cache_does_not_matter(alone, make_engine, make_spec):
    engine = make_engine(2)
    engine.prefixes.budget = 0
    packed = [make_spec(f"packed-{i}", **settings) for i, settings in enumerate(SETTINGS)]
    run(engine, *packed)
    assert all(same_result(a, b) for a, b in zip(alone, packed, strict=True))


def test_diverging_neighbour_leaves_bits_alone(alone, make_engine, make_spec):
    good, bad = make_spec("good", **SETTINGS[1]), make_spec("bad", learning_rate=1e30, grad_clip=None)
    _, record = run(make_engine(2), good, bad)
    assert same_result(alone[1], good)
    assert (record.state, record.reason) == ("failed", "diverged")


def _swapped(add):
    def swap(self, slot, adapter=None):
        add(self, slot, adapter)
        self.adapters = [(a[::-1], b) for a, b in self.adapters]

    return swap


BREAKS = {
    "two slots' adapters swapped": lambda m: m.setattr(pack.Pack, "add", _swapped(pack.Pack.add)),
    "loss scaled by the number of slots": lambda m: m.setattr(
        "lora_core.step.squared_norm", lambda g, f=pack.Pack: 1e6 * g[0][0].shape[0] + mx.zeros(g[0][0].shape[0])
    ),
    "dropout key of another step": lambda m: m.setattr(
        pack.Pack, "_keys", lambda self, slot: mx.zeros((len(self.sites), 2), dtype=mx.uint32) + len(self.slots)
    ),
    "dropout mask shared by slots": lambda m: m.setattr(
        adapters, "_drop", lambda values, active: values * (1 + 0.01 * values.shape[0])
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_breaking_it_is_noticed(alone, make_engine, make_spec, monkeypatch, name):
    BREAKS[name](monkeypatch)
    packed = [make_spec(f"packed-{i}", **settings) for i, settings in enumerate(SETTINGS)]
    run(make_engine(3), *packed)
    assert not all(same_result(a, b) for a, b in zip(alone, packed, strict=True))


def test_padding_of_the_rank_stays_zero(make_engine, make_spec):
    engine = make_engine(2)
    engine.start(make_spec("small", rank=3))
    engine.start(make_spec("large", rank=16))
    for _ in range(4):
        engine.advance()
    _, used, _ = engine.running[0]
    for a, b in used.adapters:
        assert not mx.any(a[0][..., 3:]).item() and not mx.any(b[0][..., 3:, :]).item()
        assert mx.any(a[0][..., :3]).item() and mx.any(b[0][..., :3, :]).item()


def test_losses_of_different_settings_differ(alone):
    assert len({str(losses(spec)) for spec in alone}) == len(alone)
