"""Writes a report's files: report.html, report.md with figures, trials.csv, report.json."""

from pathlib import Path

from lora_core.errors import UserError
from lora_core.records import write_file, write_json
from reports import content, figures_png, html, markdown, tables
from reports.study import Study, load


def build(study_folder: Path, out: Path | None = None) -> Path:
    """Writes the report of the study in `study_folder` and returns the path of its report.html.

    `out`: the folder it goes to, by default `study_folder`/report. A study that is still running, was
    interrupted or has no completed trial gets a report that says so. Raises UserError if there is no study
    or `out` cannot be written.
    """
    study = load(study_folder)
    folder = out if out is not None else study_folder / "report"
    try:
        return _write(study, folder)
    except OSError as error:
        raise UserError(f"The report cannot be written to {folder}: {error.strerror or error}.") from None


def _write(study: Study, folder: Path) -> Path:
    computed = content.compute(study)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    drawn = figures_png.figures(computed)
    for name, png in drawn.items():
        write_file(folder / "figures" / f"{name}.png", png)
    frame = tables.trials_frame(study, computed.leaderboard)
    write_file(folder / "trials.csv", frame.to_csv(index=False).encode())
    write_json(folder / "report.json", computed.to_json())
    write_file(folder / "report.md", markdown.render(computed, list(drawn)).encode())
    write_file(folder / "report.html", html.render(computed).encode())
    return folder / "report.html"
