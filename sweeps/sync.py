"""`lora-sweep sync STUDY…`: tells MLflow what it missed of a study."""

import argparse
from pathlib import Path

from lora_core.errors import UserError
from lora_core.records import StudyRecord, load_study, save_study
from reports.command import study_folder
from reports.wording import plural


def main(argv: list[str]) -> int:
    """Brings MLflow to what lies on disk, for each study; returns the exit code. Raises UserError if a study is
    not there, or is at work (its own process tells MLflow), or the store cannot be used."""
    given = _arguments(argv)
    folders = [study_folder(Path(given.output_dir), name).absolute() for name in given.study]
    for folder in folders:
        print(_synced(folder, given.uri))
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lora-sweep sync", description="Tells MLflow what it missed of studies.")
    parser.add_argument("study", nargs="+", metavar="STUDY", help="name of a study; train/NAME for a single run")
    parser.add_argument("--output-dir", default="outputs", metavar="DIR", help="where studies lie (default: outputs)")
    parser.add_argument("--uri", help="the MLflow store (default: the study's own)")
    return parser.parse_args(argv)


def _synced(folder: Path, uri: str | None) -> str:
    from sweeps.study_folder import locked
    from sweeps.tracking import Tracker

    with locked(folder):
        record = load_study(folder)
        if "link" not in record.tracking:
            raise UserError(f"{folder} has some trials of {record.study} only. The machine that leads it tells MLflow.")
        tracker = Tracker(_store(record, uri), str(record.config["tracking"]["experiment"]))
        record.notes = [note for note in record.notes if not note.startswith("MLflow could not be told")]
        tracker.open_study(record, folder)
        if record.kind == "train":
            tracker.recover()
        report = folder / "report"
        tracker.close_study(record, record.state, report if report.is_dir() else None)
        save_study(folder, record)
    if tracker.problem:
        raise UserError(f"{record.study}: {tracker.problem}.")
    what = f"{plural(tracker.copied, 'trial')} brought up to date" if tracker.copied else "nothing was missing"
    return f"{record.study}: {what}. {tracker.link}"


def _store(record: StudyRecord, uri: str | None) -> str:
    """Where the study was tracked. The address of a file may be relative to where the search was started."""
    from sweeps.config import check_store
    from sweeps.connect import sqlite_file

    known = record.config["tracking"]["uri"]
    file = sqlite_file(known)
    if uri is None and file is not None and not file.exists():
        raise UserError(f"{file} does not exist. Start this where the search was started, or give --uri.")
    check_store(uri or known)
    return uri or known
