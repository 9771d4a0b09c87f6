"""Reads a finished or running study, computes, draws, writes. Trains nothing."""

from collections.abc import Sequence
from pathlib import Path

FORMATS = ("html", "md", "csv", "json")


def build(study_folder: Path, out: Path | None = None, formats: Sequence[str] = FORMATS) -> Path:
    """Writes the report of the study in `study_folder`; see `reports.writer.build`."""
    # Drawing libraries take a second to import: only when a report is really built.
    from reports.writer import build as write

    return write(study_folder, out, formats)
