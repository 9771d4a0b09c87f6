"""A trial that takes the slot of one that has ended, beside one that goes on: it begins anew in everything, and nothing
is compiled for it. Each thing that could be left over from the one before must be noticed.
"""

import shutil
import sys
from collections import Counter
from copy import copy

import mlx.core as mx
import pytest

from lora_core import backend
from lora_core.pack import Pack
from lora_core.slot import Slot
from lora_core.stacks import Stacks
from tests.lora_core.helpers import bits_are_promised, new_engine, new_spec, run, same_result

NEXT = {"rank": 16, "dropout": 0.2, "warmup": 0.5}  # the trial in the slot that has become free
BEFORE = {"rank": 16, "dropout": 0.1, "scale": 4.0, "weight_decay": 0.1, "repeat": 1, "iters": 2}
BESIDE = {"rank": 8, "dropout": 0.3}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    spec = new_spec(tmp_path_factory.mktemp("alone"), "alone", **NEXT)
    run(new_engine(1), spec)
    return spec


def later(slot):
    """The next trial as it would be had it not begun at step 0 but where the one before it was."""
    moved = copy(slot)
    moved.step += BEFORE["iters"] * (slot.spec.name == "next")
    return moved


def stale_moments(new):
    def stale(self, group, slots, rank):
        fresh, *_ = new(self, group, slots, rank)
        _, *moments = self.state.get(group) or new(self, group, slots, rank)
        return fresh, *(tuple(array[:, : len(slots)] for array in arrays) for arrays in moments)

    return stale


def stale_settings(constant):
    kept = {}
    return lambda self, due, groups: kept.setdefault(len(due), constant(self, due, groups))


LEFT_OVER = {
    "moments": (Stacks, "_new", stale_moments),
    "step count": (Slot, "correction", lambda plain: lambda slot: plain(later(slot))),
    "schedule": (Slot, "rate", lambda plain: property(lambda slot: plain.fget(later(slot)))),
    "dropout stream": (Pack, "_keys", lambda plain: lambda pack, slot, *rest: plain(pack, later(slot), *rest)),
    "key": (Slot, "draw", lambda plain: property(lambda slot: plain.fget(slot)._replace(repeat=BEFORE["repeat"]))),
    "multiplier, decay and dropout": (Pack, "_constant", stale_settings),
    "nothing": (Slot, "correction", lambda plain: plain),
}


@bits_are_promised
@pytest.mark.parametrize("left_over", LEFT_OVER)
def test_it_begins_anew(alone, make_spec, monkeypatch, left_over):
    owner, attribute, broken = LEFT_OVER[left_over]
    monkeypatch.setattr(owner, attribute, broken(getattr(owner, attribute)))
    following = make_spec("next", **NEXT)
    run(new_engine(2), make_spec("before", **BEFORE), make_spec("beside", **BESIDE), following)
    assert same_result(alone, following) == (left_over == "nothing")


COMPILED = {"_adamw", "_mask.<locals>.kept"}  # what MLX traces of a step; the rest is run under `mx.grad`, as it is


@pytest.fixture
def traces():
    """How often each of them has been traced, with compilation on."""
    found: Counter[str] = Counter()

    def look(frame, event, _):
        if event == "call" and frame.f_code.co_qualname in COMPILED:
            found[frame.f_code.co_qualname] += 1

    mx.enable_compile()
    sys.setprofile(look)
    yield found
    sys.setprofile(None)
    mx.disable_compile()


def advance_beside_another(engine):
    while len(engine.running) == 2:
        engine.advance()


@pytest.mark.skipif(
    not backend.is_cpu() or shutil.which("g++") is None,
    reason="elsewhere other tests have traced them before, and without a compiler nothing is",
)
def test_nothing_is_traced_again(make_spec, traces):
    engine = new_engine(3)
    engine.start(make_spec("before", **BEFORE))
    engine.start(make_spec("beside", **BESIDE, iters=12))
    advance_beside_another(engine)
    engine.advance()  # one slot alone is another shape
    before = Counter(traces)
    assert before.keys() == COMPILED
    engine.start(make_spec("next", **NEXT, iters=3))
    advance_beside_another(engine)
    engine.start(make_spec("other", rank=40, num_layers=3, dropout=0.1, scale=4.0, iters=3))
    advance_beside_another(engine)
    assert traces == before
    run(engine, *(make_spec(f"more-{i}", dropout=0.1, iters=2) for i in range(2)))
    assert traces > before  # so are three
