"""What one trial keeps of its evaluations, and when it is over."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lora_core.config import OptimizerConfig, TrainConfig, TrainerConfig
from lora_core.records import load_metrics, load_trial
from lora_core.slot import Slot
from lora_core.trial import TrialSpec

STEPS = 12


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    config = TrainConfig(trainer=TrainerConfig(iters=STEPS, eval_every=2, patience=2))
    config.optimizer = OptimizerConfig(learning_rate=1.0, warmup=0.0, schedule="linear")
    spec = TrialSpec("trial-0003", "trial", config.to_dict(), str(tmp_path / "trial-0003"), number=3)
    slot = Slot(spec, config, 2, np.zeros(STEPS, dtype=np.int64))
    slot.begin()
    return slot


def step(slot: Slot, *losses: float) -> None:
    for loss in losses:
        slot.took_step(tokens=10)
        slot.heard(loss, seconds=0.5)


def play(slot: Slot, *valid: float) -> None:
    """Step 0 gives the first validation loss; each other comes after two steps."""
    slot.evaluated(valid[0], "adapter 0")
    for loss in valid[1:]:
        step(slot, 1.0, 1.0)
        slot.evaluated(loss, f"adapter {slot.step}")


def test_it_is_on_disk_from_the_start(slot: Slot) -> None:
    record = load_trial(slot.folder)
    assert (record.state, record.number, record.planned_steps, record.step) == ("running", 3, STEPS, 0)
    assert slot.verdict is None


def test_best_is_after_step_zero(slot: Slot) -> None:
    play(slot, 1.0, 3.0, 2.0, 2.5)
    assert (slot.best, slot.best_step, slot.best_adapter, slot.last) == (2.0, 4, "adapter 4", 2.5)


def test_patience_counts_evaluations_without_a_new_best(slot: Slot) -> None:
    play(slot, 1.0, 3.0, 2.0, 2.5)
    assert slot.verdict is None
    play_on = [2.0]  # as good is not better
    step(slot, 1.0, 1.0)
    slot.evaluated(play_on[0], None)
    state, reason = slot.verdict or ("", "")
    assert (state, reason) == ("complete", "no better validation loss in 2 evaluations")


def test_a_new_best_starts_the_count_anew(slot: Slot) -> None:
    play(slot, 1.0, 3.0, 3.5, 2.9, 3.0)
    assert slot.since_best == 1 and slot.verdict is None


def test_the_last_step_completes_it(slot: Slot) -> None:
    step(slot, *[1.0] * STEPS)
    assert slot.waits and slot.verdict is None  # it is still to be evaluated
    slot.evaluated(1.0, None)
    assert slot.verdict == ("complete", None)


def test_divergence_fails_it(slot: Slot) -> None:
    slot.evaluated(1.0, None)
    step(slot, 1.0, math.nan)
    slot.alive = False
    assert slot.verdict == ("failed", "diverged")


def test_rows_hold_means_since_the_last_row(slot: Slot) -> None:
    slot.evaluated(5.0, None)
    step(slot, 2.0, 4.0)
    slot.evaluated(3.0, None)
    step(slot, 1.0, 1.5)
    slot.evaluated(2.0, None)
    first, second, third = load_metrics(slot.folder)
    assert first == {"step": 0, "val_loss": 5.0, "seconds": 0}
    assert (second["step"], second["train_loss"], second["tokens_per_second"]) == (2, 3.0, 20.0)
    assert second["learning_rate"] == pytest.approx(1 - 1 / STEPS)  # that of the step just made
    assert (third["train_loss"], third["seconds"]) == (1.25, 2.0)


def test_a_restart_begins_its_metrics_anew(slot: Slot) -> None:
    play(slot, 1.0, 2.0)
    Slot(slot.spec, slot.config, 2, slot.order).begin()
    assert load_metrics(slot.folder) == []


def test_without_an_evaluation_of_its_own_a_trial_has_no_final_loss(slot: Slot) -> None:
    slot.evaluated(5.0, None)
    slot.end("failed", "diverged", slot.metrics(), None)
    assert not {"best_val_loss", "final_val_loss"} & load_trial(slot.folder).metrics.keys()


def test_the_end_is_written_without_numbers_that_json_lacks(slot: Slot) -> None:
    play(slot, 1.0, 2.0)
    slot.end("failed", "diverged", {**slot.metrics(), "final_val_loss": math.nan}, None)
    record = load_trial(slot.folder)
    assert (record.state, record.reason, record.step, record.best_step) == ("failed", "diverged", 2, 2)
    assert record.metrics["best_val_loss"] == record.value == 2.0 and "final_val_loss" not in record.metrics
    assert record.metrics["val_perplexity"] == pytest.approx(math.exp(2))
    json.loads((slot.folder / "trial.json").read_text(), parse_constant=pytest.fail)
    assert record.adapter is None and record.ended is not None


def test_the_record_of_an_adapter_elsewhere_says_where(slot, monkeypatch, tmp_path):
    slot.config.adapter_path = "mine"
    monkeypatch.chdir(tmp_path)
    slot.end("complete", None, {}, "0" * 64)
    assert load_trial(slot.folder).adapter == str(tmp_path / "mine")
