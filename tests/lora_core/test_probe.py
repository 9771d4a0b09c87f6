"""What the probe measures, chooses, foretells and leaves behind."""

import gc
from dataclasses import replace

import mlx.core as mx
import pytest

from lora_core import probe as probing
from lora_core.config import TrainConfig
from lora_core.engine import Engine
from lora_core.probe import probe
from lora_core.records import load_metrics
from tests.lora_core.helpers import bits_are_promised, demo, new_engine, new_spec, run, same_result


def samples(tmp_path, *changes, **shared) -> list[TrainConfig]:
    return [TrainConfig.from_dict(new_spec(tmp_path, "sample", **shared, **change).config) for change in changes]


MIXED = [{"num_layers": 1}, {"num_layers": "all", "rank": 16}, {"num_layers": 2, "dropout": 0.1}]


def scripted(monkeypatch, seconds):
    """The times of packs, by their number of slots, as `seconds` says."""
    plain = probing.timed

    def timed(engine, configs, *given):
        return replace(plain(engine, configs, *given), seconds=seconds(len(configs)))

    monkeypatch.setattr(probing, "timed", timed)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        (lambda slots: 1.0, 8),  # packing is free
        (lambda slots: slots, 1),  # it saves nothing
        (lambda slots: slots / (1.1 if slots > 1 else 1), 1),  # or too little
        (lambda slots: 1.0 + max(0, slots - 4), 4),
    ],
)
def test_more_slots_are_chosen_where_they_are_faster(tmp_path, monkeypatch, seconds, chosen):
    scripted(monkeypatch, seconds)
    found = probe(new_engine(8), samples(tmp_path, {}), 8)
    assert found.slots == chosen
    rates = {each.slots: each.tokens_per_second for each in found.measured}
    assert rates[chosen] >= rates[1]
    for slots, rate in rates.items():
        assert rate == pytest.approx(rates[1] * slots * seconds(1) / seconds(slots), rel=1e-6)


@pytest.mark.parametrize(("tries", "chosen"), [(1, 1), (2, 4)])
def test_a_gpu_is_tried_once_more(tmp_path, monkeypatch, tries, chosen):
    scripted(monkeypatch, {1: 1.0, 2: 2.0, 4: 2.0, 8: 4.0}.get)
    monkeypatch.setattr(probing, "_tries", lambda: tries)
    assert probe(new_engine(8), samples(tmp_path, {}), 8).slots == chosen


def test_each_kind_of_trial_has_its_own_time(tmp_path, monkeypatch):
    """Whatever the order in which they are drawn."""
    plain = probing.timed

    def timed(engine, configs, *given):
        trainer = configs[0].trainer
        return replace(plain(engine, configs, *given), seconds=trainer.batch_size * trainer.grad_accumulation)

    monkeypatch.setattr(probing, "timed", timed)
    changes = [{"batch_size": 1}, {"batch_size": 4}, {"batch_size": 2, "grad_accumulation": 3}]
    drawn = samples(tmp_path, *changes)
    alone, other = probing.Alone(new_engine(), drawn), probing.Alone(new_engine(), drawn[::-1])
    assert [alone.seconds(sample) for sample in drawn] == [1, 4, 6] == [other.seconds(sample) for sample in drawn]


def test_prefixes_are_there_before_anything_is_timed(tmp_path, monkeypatch):
    engine, seen = new_engine(2), []
    prefix, advance = engine.split.prefix, Engine.advance
    monkeypatch.setattr(engine.split, "prefix", lambda *given: seen.append("prefix") or prefix(*given))
    monkeypatch.setattr(Engine, "advance", lambda self: seen.append("step") or advance(self))
    probing.timed(engine, samples(tmp_path, MIXED[0], MIXED[2]))
    stepping = seen[seen.index("step") : len(seen) - seen[::-1].index("step")]
    assert seen[0] == "prefix" and set(stepping) == {"step"}


def test_memory_bounds_the_slots(tmp_path, monkeypatch):
    scripted(monkeypatch, lambda slots: 1.0)
    monkeypatch.setattr(probing.backend, "memory", lambda: 1)
    assert probe(new_engine(8), samples(tmp_path, {}), 8).slots == 1


@pytest.fixture
def room_for_two(monkeypatch):
    """Packing is free, as long as memory allows it."""
    scripted(monkeypatch, lambda slots: 1.0)
    plain = probing.timed

    def short(engine, configs, *given):
        if len(configs) > 2:
            raise RuntimeError("[malloc] Unable to allocate 99 bytes.")
        return plain(engine, configs, *given)

    monkeypatch.setattr(probing, "timed", short)


def test_running_out_of_memory_ends_the_trying(tmp_path, room_for_two):
    assert probe(new_engine(8), samples(tmp_path, {}), 8).slots == 2


def test_a_given_number_that_does_not_fit_is_an_error(tmp_path, room_for_two):
    """So that half as many are tried, rather than one."""
    with pytest.raises(RuntimeError, match="Unable to allocate"):
        probe(new_engine(4), samples(tmp_path, {}), 4, choose=False)


def test_another_error_is_not_taken_for_it(tmp_path, monkeypatch):
    def broken(engine, configs, steps=probing.STEPS):
        raise RuntimeError("a bug")

    monkeypatch.setattr(probing, "timed", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        probe(new_engine(8), samples(tmp_path, {}), 8)


def test_a_given_number_is_measured_beside_one(tmp_path):
    found = probe(new_engine(3), samples(tmp_path, *MIXED), 3, choose=False)
    assert (found.slots, [each.slots for each in found.measured]) == (3, [1, 3])


@bits_are_promised
@pytest.mark.parametrize("mixed", [MIXED, MIXED[::-1]])
def test_it_says_that_packing_moves_no_bit(tmp_path, mixed):
    found = probe(new_engine(3), samples(tmp_path, *mixed), 3, choose=False)
    assert "Checked: 3 trials packed give what each gives alone, to the bit." in found.notes


def test_it_says_what_packing_does_to_bits(tmp_path, monkeypatch):
    from lora_core.pack import Pack

    keys = Pack._keys
    monkeypatch.setattr(Pack, "_keys", lambda self, slot, *rest: keys(self, slot, *rest) + len(self.slots))
    dropping = samples(tmp_path, {"dropout": 0.1}, {})
    notes = probe(new_engine(2), dropping, 2, choose=False).notes
    assert any("2 trials packed differ from each alone by" in note for note in notes)


@pytest.mark.parametrize("together", [True, False])
def test_depths_are_joined_where_that_is_faster(tmp_path, monkeypatch, together):
    plain = probing.timed

    def timed(engine, configs, *given):
        slow = len(configs) > 1 and engine.joins != together
        return replace(plain(engine, configs, *given), seconds=2.0 if slow else 1.0)

    monkeypatch.setattr(probing, "timed", timed)
    engine = new_engine(3)
    found = probe(engine, samples(tmp_path, *MIXED), 3, choose=False)
    assert engine.joins == found.joins == together
    assert any("one depth at a time" in note for note in found.notes) != together


def test_nothing_is_left_behind(tmp_path, make_spec):
    before, after = make_spec("before", dropout=0.1), make_spec("after", dropout=0.1)
    run(new_engine(2), before)
    engine = new_engine(2)
    there = sorted(tmp_path.rglob("*"))
    probe(engine, samples(tmp_path, *MIXED, iters=6), 2)
    assert (engine.running, engine.events, engine.steps, engine.tokens) == ([], [], 0, 0)
    assert sorted(tmp_path.rglob("*")) == there
    run(engine, after)
    assert same_result(before, after)


def test_parameters_are_counted(tmp_path):
    found = probe(new_engine(), samples(tmp_path, *MIXED), 1)
    per_rank = 3 * (64 + 64) + (64 + 64) + 3 * (64 + 128)
    engine = new_engine()
    assert found.trainable == tuple(engine.learned(c).parameters(c) for c in samples(tmp_path, MIXED[0], MIXED[1]))
    assert found.trainable[1] == 2 * 4 * found.trainable[0] and per_rank > 0


def test_memory_is_that_of_the_largest_settings(tmp_path):
    """Whatever the order in which they are drawn."""
    small, large = [{"num_layers": 1, "rank": 2}] * 2, [{"num_layers": "all", "rank": 128}] * 2

    def peaks(changes):
        gc.collect()  # what tests before have left would count
        return [m.peak_gb for m in probe(new_engine(2), samples(tmp_path, *changes), 2, choose=False).measured]

    alone, both = peaks(small + large)
    assert (alone, both) == pytest.approx(peaks(large), rel=0.1)
    assert max(peaks(small)) < alone < both


@pytest.mark.parametrize(
    ("large", "small"),
    [
        ({"batch_size": 8}, {"batch_size": 1, "rank": 9}),
        ({"num_layers": "all", "rank": 4}, {"num_layers": 1, "rank": 32}),
    ],
)
def test_the_largest_are_not_always_those_that_learn_the_most(tmp_path, large, small):
    def peak(*changes):
        gc.collect()  # what tests before have left would count
        return probe(new_engine(), samples(tmp_path, *changes), 1).memory_gb

    both, alone, other = peak(large, small), peak(large), peak(small)
    assert both == pytest.approx(alone, rel=0.1) and both != pytest.approx(other, rel=0.1)


@pytest.mark.parametrize("slots", [1, 4])
def test_memory_is_foretold_within_a_quarter(tmp_path, slots):
    """Wide enough a model that its arrays, not single buffers, decide."""
    changes = [{"num_layers": "all", "rank": rank} for rank in (4, 32, 16, 8)]
    data = replace(demo(), train=demo().train[:64], valid=demo().valid[:8])
    base = new_engine().base
    found = probe(Engine(base, data, slots), samples(tmp_path, *changes, iters=12), slots, choose=False)
    mx.clear_cache()
    engine = Engine(base, data, slots)
    specs = [new_spec(tmp_path, f"trial-{i}", iters=12, eval_every=6, **change) for i, change in enumerate(changes)]
    used = max(record.metrics["peak_memory_gb"] for record in run(engine, *specs))
    assert found.memory_gb == pytest.approx(used, rel=0.25)
    assert load_metrics(tmp_path / "trial-0")
