"""Writes the files of a report, on one study or on several."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas

from lora_core.errors import UserError
from lora_core.records import write_file
from reports import FORMATS, comparison, comparison_panels, content, figures_png, html, markdown, tables
from reports.at_work import at_work
from reports.html import comparison_context
from reports.panels_html import figures as panel_figures
from reports.panels_png import grid
from reports.study import Study, load

NAMES = {"html": "report.html", "md": "report.md", "csv": "trials.csv", "json": "report.json"}
Files = dict[str, bytes]


def build(study_folder: Path, out: Path | None = None, formats: Sequence[str] = FORMATS) -> Path:
    """Writes the report of the study in `study_folder` and returns the path of its first format.

    `out`: the folder it goes to, by default `study_folder`/report. A study that is still running, was
    interrupted or has no completed trial gets a report that says so. Raises UserError if there is no study
    or `out` cannot be written.
    """
    return _write(_files(_read(study_folder), formats), out or study_folder / "report", formats)


def compare(folders: list[Path], out: Path, formats: Sequence[str] = FORMATS) -> Path:
    """The same about several studies, side by side."""
    return _write(_compared([_read(folder) for folder in folders], formats), out, formats)


def _read(folder: Path) -> Study:
    """The study as it stands: one that was killed could not write that it was."""
    study = load(folder)
    if study.record.state == "running" and not at_work(folder):
        study.record.state = "interrupted"
    return study


def _files(study: Study, formats: Sequence[str]) -> Files:
    computed = content.compute(study)
    files: Files = {}
    if "html" in formats:
        files["report.html"] = html.render(computed).encode()
    if "md" in formats:
        drawn = figures_png.figures(computed)
        files |= _pictures(drawn) | {"report.md": markdown.render(computed, list(drawn)).encode()}
    if "csv" in formats:
        files["trials.csv"] = tables.trials_frame(study, computed.leaderboard).to_csv(index=False).encode()
    if "json" in formats:
        files["report.json"] = _json(computed.to_json())
    return files


def _compared(studies: list[Study], formats: Sequence[str]) -> Files:
    computed = comparison.compute(studies)
    panels, values = comparison_panels.panels(computed), comparison_context(computed)
    files: Files = {}
    if "html" in formats:
        drawn = panel_figures(panels)
        files["report.html"] = html.page("comparison.html.j2", values["title"], drawn, values).encode()
    if "md" in formats:
        files |= _pictures({name: grid(each) for name, each in panels.items()})
        files["report.md"] = markdown.text("comparison.md.j2", values | {"figures": list(panels)}).encode()
    if "csv" in formats:
        frames = [tables.trials_frame(study, tables.leaderboard(study)).assign(study=study.name) for study in studies]
        files["trials.csv"] = pandas.concat(frames).to_csv(index=False).encode()
    if "json" in formats:
        files["report.json"] = _json(computed.to_json())
    return files


def _pictures(drawn: Files) -> Files:
    return {f"figures/{name}.png": png for name, png in drawn.items()}


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write(files: Files, folder: Path, formats: Sequence[str]) -> Path:
    try:
        for name, found in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_file(folder / name, found)
    except OSError as error:
        raise UserError(f"The report cannot be written to {folder}: {error.strerror or error}.") from None
    return folder / NAMES[formats[0]]
