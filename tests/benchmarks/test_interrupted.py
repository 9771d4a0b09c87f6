"""Interrupted five ways: what the program finds, and that it would find a difference."""

from pathlib import Path

import pytest

from lora_core.records import ADAPTER, TrialRecord, save_trial, write_metrics
from tests.benchmarks import interrupted


@pytest.mark.faults
def test_no_bit_is_lost(capfd: pytest.CaptureFixture[str]) -> None:
    length = ["trainer.iters=128", "trainer.eval_every=32", "trainer.slots=1"]
    assert interrupted.main(["--trials", "8", *length]) == 0
    assert capfd.readouterr().out.count("8 of 8 equal to the last bit") == 2


def trial(folder: Path, loss: float = 0.1 + 0.2, adapter: bytes = b"same", step: int = 4, seconds: float = 1.0) -> Path:
    (folder / "adapters").mkdir(parents=True)
    (folder / "adapters" / ADAPTER).write_bytes(adapter)
    write_metrics(folder, [{"step": 0, "val_loss": 5.5}, {"step": 4, "val_loss": loss, "seconds": seconds}])
    save_trial(folder, TrialRecord(folder.name, "trial", "complete", step=step))
    return folder


@pytest.mark.parametrize(
    ("other", "different"),
    [
        ({"seconds": 9.0}, 0),
        ({"loss": 0.3}, 1),  # in the last bit
        ({"adapter": b"sane"}, 1),
        ({"step": 2}, 1),
    ],
)
def test_a_difference_is_found(tmp_path: Path, other: dict, different: int) -> None:
    ours, twin = trial(tmp_path / "ours"), trial(tmp_path / "twin", **other)
    records = [TrialRecord("ours", "trial", "complete", step=4)]
    assert interrupted.table(records, tmp_path, lambda _: twin) == different
    assert interrupted.same_curve(ours, twin) == ("DIFFERENT" if "loss" in other else "equal")
