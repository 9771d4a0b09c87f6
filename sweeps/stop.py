"""`lora-sweep stop STUDY [TRIAL]`: asks the process at work on a study to end it, or one of its trials."""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lora_core.errors import UserError, near
from lora_core.records import load_trial
from reports.at_work import at_work
from reports.command import study_folder
from reports.wording import loss, plural
from sweeps.requests import ask_to_stop, forget_requests
from sweeps.standing import Standing, has_ended, shares_folder, standing

PATIENCE = 600.0  # seconds
LOOK = 0.2  # seconds between two looks
Look = Callable[[], bool]  # at one trial, for there may be thousands: whether it has ended


def main(argv: list[str]) -> int:
    """Asks, waits until it is done, says what came of it. Raises UserError where nothing is running by that name."""
    given = _arguments(argv)
    folder = study_folder(Path(given.output_dir), given.study).absolute()
    found = standing(folder)
    if not found.at_work:
        raise UserError(f"No process is at work on {given.study}: {_ended(found)}.")
    has_stopped = None if given.trial is None else _running_trial(found, given.trial)
    ask_to_stop(folder, given.trial)
    done = _stopped_study(folder) if has_stopped is None else _stopped_trial(folder, given.trial, has_stopped)
    print(done, flush=True)
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lora-sweep stop", description="Ends a study that is running, or a trial.")
    parser.add_argument("study", metavar="STUDY", help="its name; train/NAME for a single run")
    parser.add_argument("trial", nargs="?", metavar="TRIAL", help="such as trial-0003: the study goes on without it")
    parser.add_argument("--output-dir", default="outputs", metavar="DIR", help="where studies lie (default: outputs)")
    return parser.parse_args(argv)


def _running_trial(found: Standing, name: str) -> Look:
    if found.record.kind == "train":
        raise UserError(f"{found.record.study} is a single run: stop it without naming a trial.")
    running = _running(found)
    if name in running:
        return running[name]
    there = {trial.name: trial for trial in found.trials}
    known = f" ({there[name].state})" if name in there else ""
    now = f" Running: {', '.join(running)}." if running else " No trial of the search is running."
    raise UserError(f"{name} is not a running trial of {found.record.study}{known}.{now}{near(name, running)}")


def _running(found: Standing) -> dict[str, Look]:
    """The running trials of the search. Those of machines that do not share this folder are in the database."""
    if shares_folder(found.record):
        names = [trial.name for trial in found.running if trial.role == "trial"]
        return {name: partial(has_ended, found.folder / name) for name in names}
    import optuna

    from sweeps.storage import open_storage
    from sweeps.study import trial_name

    storage = open_storage(found.record.storage)

    def has_finished(trial: optuna.trial.FrozenTrial) -> bool:
        return storage.get_trial(trial._trial_id).state.is_finished()

    study = optuna.load_study(study_name=found.record.study, storage=storage)
    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    return {trial_name(trial.number): partial(has_finished, trial) for trial in running}


def _stopped_study(folder: Path) -> str:
    print("It ends as soon as it has written what it is at.", flush=True)
    if not _waited(lambda: not at_work(folder)):
        return "It has been asked to stop, but has not answered yet."
    found = standing(folder)
    forget_requests(folder)
    how = "has stopped" if found.record.state != "complete" else "was about to end anyway, and has"
    resume = "" if found.record.state == "complete" else f"\nTo go on: {found.record.resume_command}"
    return f"{found.record.study} {how}: {_ended(found)}.{resume}"


def _ended(found: Standing) -> str:
    return f"{len(found.ended)} of {plural(found.record.n_trials, 'trial')} ended"


def _stopped_trial(folder: Path, name: str, has_stopped: Look) -> str:
    print(f"{name} ends at its next evaluation.", flush=True)
    if not _waited(lambda: has_stopped() or not at_work(folder)) or not has_stopped():
        return f"{name} has been asked to stop, but has not ended yet."
    if not has_ended(folder / name):
        return f"{name} has ended, on another machine."
    trial = load_trial(folder / name)
    if trial.value is None:
        return f"{name} has ended at step {trial.step}: {trial.state}."
    return f"{name} has ended at step {trial.step} ({trial.state}); its best checkpoint is kept ({loss(trial.value)})."


def _waited(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(LOOK)
    return True
