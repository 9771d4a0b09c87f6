"""Trials in the engine: what is evaluated, what ends a trial, which checkpoint is kept, what continues."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest

from lora_core.config import TrainConfig
from lora_core.data import Row
from lora_core.engine import Engine
from lora_core.errors import UserError
from lora_core.records import load_metrics, load_trial
from lora_core.saved import score
from lora_core.trial import Ended, Evaluated
from tests.lora_core.helpers import demo, losses, new_engine, run, same_result, weights


def plain_loss(rows, adapter: str | None = None) -> float:
    """Mean loss of every counted token, row by row, through the whole model in stock mlx_lm."""
    model, _ = mlx_lm.load(new_engine().base.info.folder, adapter_path=adapter)
    total = count = 0.0
    for row in rows:
        each = nn.losses.cross_entropy(model(mx.array(row.tokens[None, :-1]))[0], mx.array(row.tokens[1:]))
        total += float(np.array(each)[row.counts[1:]].sum())
        count += int(row.counts[1:].sum())
    return total / count


@pytest.mark.parametrize("batch_size", [1, 4, 5, 64])
def test_validation_is_over_every_row_whatever_the_batch_size(make_spec, batch_size):
    spec, engine = make_spec("trial", batch_size=batch_size, iters=2, eval_every=2), new_engine(valid=7)
    run(engine, spec)
    (_, first, _), (_, last, _) = losses(spec)
    assert first == pytest.approx(plain_loss(engine.data.valid), rel=1e-5)
    assert last == pytest.approx(plain_loss(engine.data.valid, f"{spec.folder}/adapters"), rel=1e-5)


def test_leaving_a_row_out_of_validation_would_be_noticed():
    rows = demo().valid[:7]
    assert abs(plain_loss(rows) / plain_loss(rows[:-1]) - 1) > 5e-5


def test_eval_rows_takes_the_first(make_spec):
    specs = [make_spec(name, eval_rows=rows, iters=1) for name, rows in (("three", 3), ("all", None))]
    run(new_engine(2), *specs)
    found = [losses(spec)[0][1] for spec in specs]
    assert found == pytest.approx([plain_loss(demo().valid[:3]), plain_loss(demo().valid[:6])], rel=1e-5)


def test_the_base_role_is_step_zero_and_saves_no_adapter(make_spec):
    spec = make_spec("base", role="base")
    (record,) = run(new_engine(), spec)
    assert (record.state, record.step, record.adapter) == ("complete", 0, None)
    assert record.value == pytest.approx(plain_loss(demo().valid[:6]), rel=1e-5)
    assert [row["step"] for row in load_metrics(Path(spec.folder))] == [0]


def test_the_test_set_is_scored_whole_with_the_saved_adapter(make_spec):
    """Like stock mlx_lm, over all its rows whatever `eval_rows`, beside a trial that goes on undisturbed."""
    rows, spec = demo().test[:7], make_spec("trial", eval_rows=2)
    alone = make_spec("alone")
    engine = Engine(new_engine().base, replace(demo(), train=demo().train[:12], valid=demo().valid[:6], test=rows), 2)
    run(engine, spec)
    engine.start(alone)
    config = TrainConfig.from_dict(spec.config)
    base, adapted = score(engine, config, None), score(engine, config, Path(spec.folder) / "adapters")
    assert base == pytest.approx(plain_loss(rows), rel=1e-5)
    assert adapted == pytest.approx(plain_loss(rows, f"{spec.folder}/adapters"), rel=1e-5)
    assert [slot.spec.name for slot, *_ in engine.running] == ["alone"]
    run(engine)
    again = make_spec("again")
    run(new_engine(), again)
    assert [loss for _, loss, _ in losses(alone)] == pytest.approx([loss for _, loss, _ in losses(again)], rel=1e-5)


def test_evaluations_come_at_zero_at_intervals_and_at_the_end(make_spec):
    spec, engine = make_spec("trial", iters=7, eval_every=3), new_engine()
    run(engine, spec)
    assert [step for step, *_ in losses(spec)] == [0, 3, 6, 7]
    assert [type(event) for event in engine.events] == [Evaluated] * 4 + [Ended]
    assert engine.steps == 7


def engine_that_gets_worse() -> Engine:
    """Validated on bytes that no training row has, so that every step makes the validation loss higher."""
    unseen = Row(np.full(20, 200, dtype=np.int32), np.arange(20) > 0)
    return Engine(new_engine().base, replace(demo(), train=demo().train[:4], valid=[unseen]), 1)


def test_the_kept_checkpoint_is_the_best_not_the_last(make_spec):
    spec, engine = make_spec("trial", iters=8, eval_every=2, schedule="constant"), engine_that_gets_worse()
    (record,) = run(engine, spec)
    after = {step: loss for step, loss, _ in losses(spec)[1:]}
    assert record.best_step == min(after, key=after.get) < record.step
    assert record.value == min(after.values()) < record.metrics["final_val_loss"]
    kept = plain_loss(engine.data.valid, f"{spec.folder}/adapters")
    assert kept == pytest.approx(record.value, rel=1e-5)
    assert kept != pytest.approx(record.metrics["final_val_loss"], rel=1e-2)


def test_patience_ends_a_trial_as_complete(make_spec):
    spec = make_spec("trial", iters=60, eval_every=2, schedule="constant", patience=2)
    (record,) = run(engine_that_gets_worse(), spec)
    assert record.state == "complete" and "no better validation loss" in record.reason
    assert record.step == record.best_step + 4 < 60


def test_a_stopped_trial_is_pruned_with_its_best_checkpoint(make_spec):
    spec, engine = make_spec("trial", eval_every=2), new_engine()
    engine.start(spec)
    for _ in range(4):
        engine.advance()
    engine.stop("trial")
    record = load_trial(Path(spec.folder))
    assert (record.state, record.step, engine.running) == ("pruned", 4, [])
    assert record.best_step in (2, 4) and weights(spec)


def test_clipping_is_per_slot(make_spec):
    """A clip tight enough to let weight decay alone move one slot must not reach its neighbour."""
    free = make_spec("free", grad_clip=None)
    tight, beside = make_spec("tight", grad_clip=1e-9), make_spec("beside", grad_clip=None)
    run(new_engine(1), free)
    run(new_engine(2), tight, beside)
    np.testing.assert_allclose([x[1] for x in losses(beside)], [x[1] for x in losses(free)], rtol=1e-6)
    assert losses(tight)[-1][1] != pytest.approx(losses(free)[-1][1], rel=1e-4)


def test_resuming_continues_where_the_first_run_ended(make_spec):
    first = make_spec("first", learning_rate=2e-3)
    run(new_engine(), first)
    second = make_spec("second", resume_adapter_file=f"{first.folder}/adapters", learning_rate=2e-3)
    run(new_engine(), second)
    assert losses(second)[0][1] == pytest.approx(losses(first)[-1][1], rel=1e-6)
    assert losses(second)[-1][1] < losses(second)[0][1]


def test_resuming_with_keys_that_the_pack_does_not_share(make_spec):
    keys = ["self_attn.q_proj"]
    first = make_spec("first", keys=keys)
    run(new_engine(), first)
    second = make_spec("second", keys=keys, resume_adapter_file=f"{first.folder}/adapters/adapters.safetensors")
    run(new_engine(2), make_spec("other"), second)
    assert losses(second)[0][1] == pytest.approx(losses(first)[-1][1], rel=1e-6)
    assert weights(second).keys() == weights(first).keys()


@pytest.mark.parametrize("changes", [{"rank": 4}, {"num_layers": 3}, {"keys": ["mlp.up_proj"]}])
def test_resuming_as_another_run_is_refused_before_anything_is_written(make_spec, changes):
    first = make_spec("first", iters=1)
    run(new_engine(), first)
    second = make_spec("second", resume_adapter_file=f"{first.folder}/adapters", **changes)
    engine = new_engine()
    with pytest.raises(UserError, match="does not fit this run"):
        engine.start(second)
    assert not Path(second.folder).exists() and engine.free == 1


MIXED = [
    ({"batch_size": 2}, 2),
    ({"batch_size": 3, "num_layers": 1}, 1),
    ({"num_layers": "all"}, 4),
    ({"keys": ["mlp.up_proj", "self_attn.v_proj"]}, 2),
    ({"dropout_on": "input", "dropout": 0.1}, 2),
]


def test_trials_of_other_batch_sizes_depths_and_keys_share_an_engine(make_spec):
    packed = [make_spec(f"packed-{i}", **change) for i, (change, _) in enumerate(MIXED)]
    run(new_engine(3), *packed)
    for spec, (change, depth) in zip(packed, MIXED, strict=True):
        parts = [name.split(".") for name in weights(spec)]
        assert {part[2] for part in parts} == {str(3 - i) for i in range(depth)}
        assert "keys" not in change or {".".join(part[3:5]) for part in parts} == set(change["keys"])
        alone = make_spec(f"alone-{spec.name}", **change)
        run(new_engine(1), alone)
        for found, expected in zip(losses(spec), losses(alone), strict=True):
            assert found[1] == pytest.approx(expected[1], rel=1e-5)


def test_costs_are_those_of_the_own_adapter(make_spec):
    spec = make_spec("trial", rank=3, keys=["mlp.up_proj"], iters=1)
    (record,) = run(new_engine(), spec)
    found = weights(spec)
    assert record.metrics["trainable_params"] == sum(value.size for value in found.values()) == 2 * 3 * (64 + 128)


def test_no_training_row_is_left_out_of_an_epoch(make_spec):
    engine = Engine(new_engine().base, replace(demo(), train=demo().train[:13], valid=demo().valid[:2]), 1)
    spec = make_spec("trial", iters=None, epochs=1)
    (record,) = run(engine, spec)
    feed = engine.feed(TrainConfig.from_dict(spec.config))
    assert sorted(i for batch in feed.train for i in batch.rows) == list(range(13))
    assert record.step == len(feed.train)
    assert engine.tokens == sum(int(row.counts[1:].sum()) for row in engine.data.train)


def test_no_layer_runs_that_no_slot_adapts(make_spec):
    engine = new_engine(2)
    for name, keys in (("first", ["mlp.up_proj"]), ("second", ["mlp.up_proj", "self_attn.q_proj"])):
        engine.start(make_spec(name, keys=keys))
    (_, pack, _), _ = engine.running
    sites = {(site.layer, site.key) for group in pack.stacks().state for site in group}
    assert sites == {(layer, key) for layer in (2, 3) for key in ("mlp.up_proj", "self_attn.q_proj")}
    engine.stop("second")
    assert {site.key for group in pack.stacks().state for site in group} == {"mlp.up_proj"}


def test_all_slots_step_whatever_the_lengths_of_their_batches(make_spec, monkeypatch):
    """Else those that wait for a rare length would fall behind, and take other batches than their neighbours."""
    rows = [Row(row.tokens[: 12 + 30 * (i % 2)], row.counts[: 12 + 30 * (i % 2)]) for i, row in enumerate(demo().train)]
    engine = Engine(new_engine().base, replace(demo(), train=rows[:40], valid=demo().valid[:2]), 3)
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        engine.start(make_spec(name, seed=seed, eval_every=6))
    _, pack, feed = engine.running[0]
    passes, step, most = [], type(pack).step, 1
    monkeypatch.setattr(type(pack), "step", lambda self, due, rows: passes.append(len(due)) or step(self, due, rows))
    for number in range(1, 6):
        lengths = {feed.train[slot.coming[0]].length for slot in pack.slots}
        engine.advance()
        assert [slot.step for slot in pack.slots] == [number] * 3
        assert (len(passes), sum(passes)) == (len(lengths), 3)
        most = max(most, len(passes))
        passes.clear()
    assert most > 1


def test_checkpointing_runs_adapted_blocks_again_and_changes_no_bit(make_spec, monkeypatch):
    calls: dict[bool, int] = {}
    specs = {again: make_spec(f"trial-{again}", grad_checkpoint=again, dropout=0.1, iters=2) for again in (False, True)}
    for again, spec in specs.items():
        engine = new_engine()
        block, plain = type(engine.base.model.layers[0]), type(engine.base.model.layers[0]).__call__

        def counted(*arguments, plain=plain, again=again, **named):
            calls[again] = calls.get(again, 0) + 1
            return plain(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(block, "__call__", counted)
            run(engine, spec)
    assert calls[True] > calls[False]
    assert same_result(*specs.values())


def test_two_engines_may_share_a_base(make_spec):
    first, second = make_spec("first"), make_spec("second")
    engine = new_engine()
    run(engine, first)
    run(Engine(engine.base, engine.data, 1), second)
    assert same_result(first, second)


def test_the_same_trial_twice_is_the_same(make_spec):
    one, two = make_spec("one", dropout=0.1), make_spec("two", dropout=0.1)
    run(new_engine(), one)
    run(new_engine(), two)
    assert same_result(one, two)


@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_b_learns_as_many_times_faster_as_lora_plus_says(make_engine, make_spec, ratio):
    spec = make_spec(
        "trial", learning_rate=1e-3, lora_plus_ratio=ratio, iters=1, eval_every=1, warmup=0.0, schedule="constant",
        weight_decay=0.0,
    )  # fmt: skip
    run(make_engine(1), spec)
    # The first step of Adam moves a number by the learning rate, whatever the gradient.
    moved = max(float(np.abs(array).max()) for name, array in weights(spec).items() if name.endswith("lora_b"))
    assert moved == pytest.approx(1e-3 * ratio, rel=1e-3)


def evaluated_together(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """From now on, of each evaluation on the validation set: the step of each trial in it, by name."""
    passes, plain = [], Engine.mean_losses

    def watched(self, due, *rest):
        passes.append({slot.spec.name: slot.step for slot in due})
        return plain(self, due, *rest)

    monkeypatch.setattr(Engine, "mean_losses", watched)
    return passes


def test_trials_that_began_apart_are_evaluated_together(make_spec, monkeypatch):
    engine, passes = new_engine(2), evaluated_together(monkeypatch)
    engine.start(make_spec("first", iters=6, eval_every=3))
    for _ in range(2):
        engine.advance()
    run(engine, make_spec("second", iters=6, eval_every=3))
    assert passes[1:] == [{"first": 3, "second": 3}, {"first": 6, "second": 6}]


def test_a_trial_waits_for_none_that_is_evaluated_at_other_times(make_spec, monkeypatch):
    passes = evaluated_together(monkeypatch)
    run(new_engine(2), make_spec("often", iters=6, eval_every=2), make_spec("seldom", iters=6, eval_every=6))
    assert passes[1:] == [{"often": 2}, {"often": 4}, {"often": 6}, {"seldom": 6}]


def test_a_trial_that_waits_is_evaluated_when_the_other_has_gone(make_spec, monkeypatch):
    engine, passes = new_engine(2), evaluated_together(monkeypatch)
    engine.start(make_spec("first", iters=6, eval_every=2))
    engine.advance()
    engine.start(make_spec("second", iters=6, eval_every=2))
    (first, *_), (second, *_) = engine.running
    while not first.waits:
        engine.advance()
    assert not second.waits
    engine.stop("second")
    engine.advance()
    assert passes[1:] == [{"first": 2}]
