"""`tracking.keep`: which trials of a study keep their adapters, and their state."""

import shutil
from pathlib import Path

from lora_core.records import remove_checkpoint, save_trial
from reports.study import load


def drop_adapters(folder: Path, keep: int) -> list[str]:
    """Removes the adapters of all trials that have ended but the best `keep`, the winner, and the default settings.
    Returns the names of those that had one."""
    study = load(folder)
    # Of a smaller total, one of which may win again once those that are better by one seed have had the others.
    finalists = [] if study.confirmed else [trial for trial in study.eligible if study.repeats(trial)]
    best = (*study.eligible[:keep], *finalists, study.winner, study.default)
    kept = {trial.name for trial in best if trial is not None}
    dropped = [each for each in study.trials if each.adapter and each.state != "running" and each.name not in kept]
    for trial in dropped:
        assert trial.adapter is not None
        shutil.rmtree(trial.adapter, ignore_errors=True)
        remove_checkpoint(folder / trial.name)
        trial.adapter = None
        save_trial(folder / trial.name, trial)
    return [trial.name for trial in dropped]
