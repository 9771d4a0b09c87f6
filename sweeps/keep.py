"""`tracking.keep`: which trials of a study keep their adapters, and their state."""

import shutil
from pathlib import Path

from lora_core.records import remove_checkpoint, save_trial
from reports.study import load


def drop_adapters(folder: Path, keep: int) -> None:
    """Removes the adapters of all trials that have ended but the best `keep`, the winner, and the default settings."""
    study = load(folder)
    kept = {trial.name for trial in (*study.eligible[:keep], study.winner, study.default) if trial is not None}
    for trial in study.trials:
        if trial.adapter is not None and trial.state != "running" and trial.name not in kept:
            shutil.rmtree(trial.adapter, ignore_errors=True)
            remove_checkpoint(folder / trial.name)
            trial.adapter = None
            save_trial(folder / trial.name, trial)
