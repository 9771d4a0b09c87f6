"""What MLflow shows as the description of a trial's run."""

from pathlib import Path

from lora_core.records import load_study, save_study
from reports.study import load
from sweeps.notes import trial_notes
from tests.reports.helpers import write_repeat, write_study


def test_each_trial_says_what_became_of_it(tmp_path: Path) -> None:
    notes = trial_notes(load(write_study(tmp_path)), "#/report.html")
    report = "[Report](#/report.html)"
    assert notes["trial-0003"] == (
        "Place 1 of 8 completed trials, the winner: validation loss 1.7500  \n"
        f"rank 32, scale_ratio 2, learning_rate 0.0005  \n{report}"
    )
    assert notes["trial-0000"].startswith("Place 8 of 8 completed trials: validation loss 2.2500  \nrank 8,")
    assert notes["trial-0002"].startswith(
        "Pruned at step 20 of 40: behind the median at step 20, validation loss 2.5000  \nrank 4,"
    )
    assert notes["trial-0004"].startswith("Failed at step 10 of 40: diverged  \nrank 32,")
    assert notes["base"] == f"Base model: validation loss 3.5000  \n{report}"
    assert notes["default"].startswith("Default settings: validation loss 2.1875  \nrank 8, scale_ratio 2.5,")


def test_other_seeds_and_constraints(tmp_path: Path) -> None:
    confirm = {"search": {"confirm": {"k": 1, "repeats": 1}, "constraints": ["trainable_params<1000"]}}
    folder = write_study(tmp_path, config=confirm)
    notes = trial_notes(load(folder), "#/r")
    assert notes["trial-0003"].startswith("Cannot win, ")
    record = load_study(folder)
    del record.config["search"]["constraints"]
    save_study(folder, record)
    write_repeat(folder, 3, 1, 1.5)
    notes = trial_notes(load(folder), "#/r")
    assert "the winner: validation loss 1.7500, mean 1.6250 over 2 seeds" in notes["trial-0003"]
    assert notes["confirm-0003-1"].startswith("Trained again with another seed: validation loss 1.5000")
