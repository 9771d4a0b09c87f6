"""The folder of a study or of a single run: who may write to it, and what lies in it already."""

import fcntl
import os
import shlex
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from lora_core.errors import UserError
from lora_core.records import StudyRecord, TrialRecord, load_study, load_trial, load_trials, now, save_study
from lora_core.trial import TrialSpec
from reports.constraints import ALIASES
from reports.reproduce import RESUMED, flat
from reports.wording import typed
from sweeps.client import WorkerDied
from sweeps.environment import environment
from sweeps.fingerprint import contents, fingerprint, identity, starts
from sweeps.protocol import Ready
from sweeps.public import public
from sweeps.space import Job
from sweeps.standing import shares_folder
from sweeps.study import Study, check_same, trial_name

LOG = "worker.log"
LOOKS = 5
TERMS = "terms"  # an attribute of a shared study
MEASURED = ("slots", "depths_together")  # of the environment: what shares a pass


def resume_command(argv: list[str], name: str) -> str:
    """What to type to go on with the study: the same overrides and its name."""
    overrides = [text for text in argv if not text.startswith("study=")]
    return as_typed("search", *overrides, f"study={name}")


def as_typed(command: str, *argv: str) -> str:
    """The command line, without passwords: it is printed and kept."""
    return typed(shlex.join(["lora-sweep", command, *map(public, argv)]))


def command_on(study: StudyRecord, folder: Path, command: str, *more: str) -> str:
    """What to type for a command about the study that lies in `folder`."""
    place = [] if study.config.get("output_dir") == "outputs" else ["--output-dir", str(folder.parent)]
    return typed(shlex.join(["lora-sweep", command, study.study, *more, *place]))


def check_writable(key: str, folder: Path) -> None:
    """Raises UserError if nothing can be written to `folder`, which `key` set; leaves nothing there."""
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        # Permissions do not tell all: a disk may be mounted read-only, or root be refused over a network.
        os.rmdir(tempfile.mkdtemp(prefix=".lora-sweep-", dir=nearest))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{key}: {nearest} cannot be written to ({reason}). Expected a folder that can.") from None


@contextmanager
def locked(folder: Path, shared: bool = False) -> Iterator[None]:
    """Makes `folder` and holds it: two processes in one study would take each other's trials for lost ones, unless the
    study is `shared` through its database."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Some network drives know no locks: those who share the study have its database.
        with suppress(OSError) if shared else nullcontext():
            _hold(handle, folder, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _hold(handle: int, folder: Path, how: int) -> None:
    for _ in range(LOOKS):
        with suppress(BlockingIOError):
            return fcntl.flock(handle, how | fcntl.LOCK_NB)
        time.sleep(0.1)  # `lora-sweep status` may be looking, which takes no time
    raise UserError(f"Another lora-sweep writes to {folder}. Wait for it, or give another study= name.")


def earlier_record(folder: Path) -> StudyRecord | None:
    return load_study(folder) if (folder / "study.json").exists() else None


def ended_on_disk(folder: Path) -> list[TrialRecord]:
    """The trials of the search in `folder` that have ended."""
    return [trial for trial in load_trials(folder) if trial.role == "trial" and trial.state != "running"]


def has_completed(folder: Path) -> bool:
    """Whether a trial's folder holds a trial that ran to its end."""
    return (folder / "trial.json").exists() and load_trial(folder).state == "complete"


def ended_already(spec: TrialSpec) -> TrialRecord | None:
    """The record of this very trial, if it ended in an earlier run."""
    folder = Path(spec.folder)
    if not (folder / "trial.json").exists():
        return None
    record = load_trial(folder)
    return record if record.state != "running" and record.params == spec.params else None


def write_log(folder: Path, death: WorkerDied) -> str:
    """Keeps what the training process last wrote; returns one line that says how it ended and where that is."""
    (folder / LOG).write_text(death.output)
    return f"{death} Its last output: {folder / LOG}"


def check_fits(study: Study, record: StudyRecord, folder: Path) -> None:
    """Raises UserError if `folder` holds another study than the storage does."""
    there = earlier_record(folder)
    if study.is_new and there is not None:
        known, ours = (identity(r.config, r.axes) | contents(r) for r in (there, record))
        check_same(record.study, known, ours)
    check_folder(record, study.ended, folder)


def check_folder(record: StudyRecord, ended: list[FrozenTrial], folder: Path) -> None:
    """Raises UserError if trials of the study that have ended by its storage are not in `folder`."""
    for trial in ended:
        if not (folder / trial_name(trial.number) / "trial.json").exists():
            raise UserError(
                f"study={record.study} has trials in {record.storage} that are not in {folder}.\n"
                "Give the output_dir= or storage= it was made with, or another study= name."
            )


def other_versions(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """What a study goes on with that it was not made with so far; None if that is nothing."""
    old, new = flat(before), flat(after)
    both = [key for key in new if key in old and key not in MEASURED]
    changed = [f"{key} {old[key]} → {new[key]}" for key in both if old[key] != new[key]]
    return RESUMED + ", ".join(changed) if changed else None


def set_terms(study: Study, record: StudyRecord, folder: Path) -> None:
    """What those who join a shared study must have in common with the process that leads it, which is this one."""
    folder.mkdir(parents=True, exist_ok=True)
    save_study(folder, record)  # by which they see that the folder is the same
    terms = {"n_trials": study.n_trials, "created": record.created, "shared_folder": shares_folder(record)}
    study.optuna.set_user_attr(TERMS, terms)


def check_own_folder(study: Study, record: StudyRecord, folder: Path) -> None:
    """Raises UserError if `folder`, which is this machine's alone, holds another study of this name."""
    there, terms = earlier_record(folder), study.optuna.user_attrs.get(TERMS)
    if terms is None:  # it is new
        return
    if there is not None and there.created != terms["created"]:
        raise UserError(
            f"{folder} holds another study={record.study} than {record.storage}.\n"
            "Give another output_dir=, or another study= name."
        )
    record.created = terms["created"]


def check_joins(study: Study, record: StudyRecord, folder: Path) -> None:
    """Raises UserError where this process cannot join the one that leads the study."""
    terms, there = study.optuna.user_attrs[TERMS], earlier_record(folder)
    if terms.get("shared_folder", True) != shares_folder(record):
        theirs = str(not shares_folder(record)).lower()
        raise UserError(
            f"study={record.study} is at work ({study.crew.lead}) with cluster.shared_folder={theirs}.\n"
            "Join it with the same."
        )
    if shares_folder(record) and (there is None or there.created != terms["created"]):
        raise UserError(
            f"study={record.study} is at work ({study.crew.lead}), but not in {folder}.\n"
            "Machines that join a study share its output_dir=, such as a folder on a network drive, or all have\n"
            "cluster.shared_folder=false."
        )
    if study.n_trials != terms["n_trials"]:
        raise UserError(
            f"n_trials={study.n_trials}: study={record.study} is at work ({study.crew.lead}) with "
            f"n_trials={terms['n_trials']}.\nJoin it with the same number, or extend it once it has ended."
        )


def study_record(name: str, folder: Path, job: Job, ready: Ready, notes: list[str], resume: str) -> StudyRecord:
    """The study's record: the old one, if there is one, brought up to date."""
    config = job.config
    earlier = earlier_record(folder) or StudyRecord(name, created=now())
    # How the number of slots came about is not found out again, nor what the study was made with before.
    history = [note for note in earlier.notes if "Slots " in note or note.startswith(RESUMED)]
    made_with = {**environment(), **ready.environment, "slots": ready.slots, "depths_together": ready.joins}
    history += [note for note in [other_versions(earlier.environment, made_with)] if note and note not in history]
    return replace(
        earlier,
        command=as_typed("search", *job.argv),
        resume_command=resume,
        ended=None,
        n_trials=config.n_trials,
        seed=config.seed,
        space=job.space,
        axes=[axis.to_dict() for axis in job.axes],
        sampler=config.search.sampler["name"],
        pruner=config.search.pruner["name"],
        objective=", ".join(ALIASES.get(each, each) for each in config.search.objectives or ["val_loss"]),
        storage=public(config.storage),
        fingerprint=fingerprint(config, job.axes),
        config=config.for_record(),
        model=asdict(ready.model),
        data=asdict(ready.data),
        starts=starts(config, job.axes),
        environment=made_with,
        notes=[*ready.notes, *notes, *history],
    )
