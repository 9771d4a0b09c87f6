"""An interrupted trial goes on from its checkpoint as if nothing had happened, or anew where that is damaged."""

import json
import math
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from lora_core import engine as engine_module
from lora_core.errors import UserError
from lora_core.records import CHECKPOINT, load_trial, save_trial, saved_step
from lora_core.stacks import Stacks
from lora_core.trial import Evaluated
from tests.lora_core.helpers import bits_are_promised, losses, new_engine, new_spec, run, same_result

SETTINGS = [
    {"rank": 3, "dropout": 0.2, "iters": 12},
    {"rank": 20, "num_layers": 3, "iters": 12, "weight_decay": 0.1},
    {"rank": 8, "keys": ["mlp.up_proj"], "iters": 12, "learning_rate": 0.3, "patience": 2, "repeat": 1},
    {"train_type": "full", "iters": 12},
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    specs = [new_spec(folder, f"trial-{i}", **settings) for i, settings in enumerate(SETTINGS)]
    run(new_engine(4), *specs)
    return specs


def interrupted(folder: Path, steps: int, which=range(4)):
    """The trials after `steps` calls of `advance`, as a process that was killed leaves them."""
    specs = [new_spec(folder, f"trial-{i}", **SETTINGS[i]) for i in which]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine_module, "SAVE_EVERY", 0.0)
        patched.setattr(engine_module, "SAVE_SHARE", math.inf)
        engine = new_engine(4)
        for spec in specs:
            engine.start(spec)
        for _ in range(steps):
            engine.advance()
    return specs


def saved_steps(specs):
    folders = [Path(spec.folder) for spec in specs]
    return [saved_step(folder) for folder in folders if (folder / CHECKPOINT).exists()]


@bits_are_promised
@pytest.mark.parametrize("steps", [1, 6, 9, 15])
def test_it_ends_as_undisturbed(undisturbed, tmp_path, steps):
    specs = interrupted(tmp_path, steps)
    assert steps == 1 or max(saved_steps(specs)) >= 3
    run(new_engine(2), *specs)
    for spec, other in zip(specs, undisturbed, strict=True):
        assert same_result(spec, other)
        assert load_trial(Path(spec.folder)).best_step == load_trial(Path(other.folder)).best_step


def test_it_goes_on_from_the_step_it_had(tmp_path):
    (spec,) = interrupted(tmp_path, 7, [0])
    (at,) = saved_steps([spec])
    engine = new_engine(1)
    engine.start(spec)
    (slot, _, _), *_ = engine.running
    assert slot.step == at == 6
    replayed = [event for event in engine.events if isinstance(event, Evaluated)]
    assert [event.row["step"] for event in replayed] == [0, 3, 6] and all(event.again for event in replayed)
    assert load_trial(Path(spec.folder)).state == "running"


def test_rows_after_the_checkpoint_are_made_again(tmp_path):
    (spec,) = interrupted(tmp_path, 6, [0])
    with (Path(spec.folder) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "val_loss": 1.0}\n')
    run(new_engine(1), spec)
    assert [step for step, _, _ in losses(spec)] == [0, 3, 6, 9, 12]


@pytest.mark.parametrize(("cost", "expected"), [(0.1, 30.0), (3.0, 150.0)])
def test_saving_takes_a_small_share_of_the_time(tmp_path, monkeypatch, cost, expected):
    (spec,) = interrupted(tmp_path, 2, [0])
    engine = new_engine(1)
    engine.start(spec)
    moments = iter([100.0, 100.0 + cost])
    monkeypatch.setattr(engine_module.time, "monotonic", lambda: next(moments))
    engine.save()
    assert engine.save_every == pytest.approx(expected)


def test_nothing_of_it_is_left_at_the_end(tmp_path):
    specs = interrupted(tmp_path, 6)
    assert list(tmp_path.rglob("slot*"))
    run(new_engine(3), *specs)
    assert not list(tmp_path.rglob("slot*"))


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-50] ^= 1
    file.write_bytes(content)


@bits_are_promised
@pytest.mark.parametrize("damage", [truncated, flipped, Path.unlink])
@pytest.mark.parametrize("what", ["slot-*.safetensors", CHECKPOINT])
def test_a_damaged_one_is_not_used(undisturbed, tmp_path, damage, what):
    if (damage, what) == (flipped, CHECKPOINT):
        pytest.skip("a byte of the index may be part of a number: the file is small and written whole")
    (spec,) = interrupted(tmp_path, 6, [0])
    (file,) = Path(spec.folder).glob(what)
    damage(file)
    engine = new_engine(1)
    engine.start(spec)
    assert engine.running[0][0].step == 0
    while engine.running:
        engine.advance()
    assert same_result(spec, undisturbed[0])


@pytest.mark.parametrize("changes", [{"learning_rate": 0.5}, {"repeat": 1}])
def test_that_of_another_trial_is_not_used(tmp_path, changes):
    (spec,) = interrupted(tmp_path, 6, [0])
    other = new_spec(tmp_path, spec.name, **{**SETTINGS[0], **changes})
    engine = new_engine(1)
    engine.start(other)
    assert engine.running[0][0].step == 0


def test_where_and_beside_how_many_it_was_trained_does_not_matter(tmp_path):
    (spec,) = interrupted(tmp_path, 6, [0])
    assert saved_step(Path(spec.folder)) == 6
    trainer = {**spec.config["trainer"], "slots": 7, "memory_fraction": 0.1}
    engine = new_engine(1)
    engine.start(replace(spec, config={**spec.config, "trainer": trainer, "keep_state": True}))
    assert engine.running[0][0].step == 6


@bits_are_promised
def test_without_the_moments_it_would_be_another(undisturbed, tmp_path, monkeypatch):
    of = Stacks.of

    def forgetful(self, slot, *parts):
        return {
            i: (pair, *[tuple(mx.zeros_like(x) for x in pair)] * 2) for i, (pair, *_) in of(self, slot, *parts).items()
        }

    monkeypatch.setattr(Stacks, "of", forgetful)
    (spec,) = interrupted(tmp_path, 6, [0])
    monkeypatch.undo()
    run(new_engine(1), spec)
    assert not same_result(spec, undisturbed[0])


def test_it_is_written_every_so_often(tmp_path):
    engine = new_engine(1)
    spec = new_spec(tmp_path, "trial", iters=12)
    engine.start(spec)
    for _ in range(6):
        engine.advance()
    assert not saved_steps([spec])  # half a minute has not gone by
    engine.save()
    assert saved_steps([spec]) == [6]


CONSTANT = {"schedule": "constant", "warmup": 0.0, "eval_every": 5}


@bits_are_promised
@pytest.mark.parametrize(
    "settings",
    [{"rank": 3, "dropout": 0.2, "grad_accumulation": 2}, {"train_type": "dora"}, {"train_type": "full"}],
    ids=str,
)
def test_twenty_steps_are_ten_and_ten_more(tmp_path, settings) -> None:
    engine = new_engine()
    whole = new_spec(tmp_path, "whole", iters=20, **CONSTANT, **settings)
    half = new_spec(tmp_path, "half", iters=10, keep_state=True, **CONSTANT, **settings)
    more = new_spec(tmp_path, "more", iters=20, **CONSTANT, **settings)
    anew = new_spec(tmp_path, "anew", iters=10, resume_adapter_file=f"{half.folder}/adapters", **CONSTANT, **settings)
    more.goes_on_from = half.folder
    run(engine, whole, half, more, anew)
    assert same_result(whole, more) and not same_result(whole, half)
    assert load_trial(Path(more.folder)).step == 20 and not (Path(more.folder) / CHECKPOINT).exists()
    # From the adapter alone it is another training: other moments, other rows.
    assert losses(anew)[-1] != losses(whole)[-1]
    kept = sum(file.stat().st_size for file in Path(half.folder).glob("slot-*.safetensors"))
    assert kept / (Path(half.folder) / "adapters" / "adapters.safetensors").stat().st_size == pytest.approx(4, rel=0.1)


def test_an_older_state_is_not_evaluated_again(tmp_path) -> None:
    half, more = new_spec(tmp_path, "half", keep_state=True), new_spec(tmp_path, "more", iters=9)
    run(new_engine(), half)
    index = json.loads((Path(half.folder) / CHECKPOINT).read_text())
    del index["host"]["looked"]
    (Path(half.folder) / CHECKPOINT).write_text(json.dumps(index))
    more.goes_on_from = half.folder
    run(new_engine(), more)
    assert [step for step, *_ in losses(more)] == [0, 3, 6, 9]


def test_one_that_ran_out_of_patience_goes_on(tmp_path) -> None:
    wild = {"iters": 30, "eval_every": 1, "learning_rate": 0.5, "schedule": "constant", "warmup": 0.0, "patience": 1}
    half, more = new_spec(tmp_path, "half", keep_state=True, **wild), new_spec(tmp_path, "more", **wild)
    more.goes_on_from = half.folder
    ended, later = run(new_engine(), half, more)
    assert ended.reason == "no better validation loss in 1 evaluations" and ended.step < 30
    assert ended.step < later.step


def test_a_trial_whose_end_was_not_written_ends(tmp_path) -> None:
    """It was killed after its last state was, and before its record."""
    spec = new_spec(tmp_path, "trial", keep_state=True)
    (ended,) = run(new_engine(), spec)
    save_trial(Path(spec.folder), replace(ended, state="running", adapter=None, ended=None))
    (again,) = run(new_engine(), spec)
    assert (again.state, again.step, again.adapter_sha256) == ("complete", 6, ended.adapter_sha256)


def test_a_kept_state_that_is_damaged_is_refused(tmp_path) -> None:
    half, more = new_spec(tmp_path, "half", keep_state=True), new_spec(tmp_path, "more", iters=9)
    run(new_engine(), half)
    (file,) = Path(half.folder).glob("slot-*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    more.goes_on_from = half.folder
    with pytest.raises(UserError, match="damaged"):
        run(new_engine(), more)
