"""`lora-sweep report STUDY…`: the command line of this package."""

import argparse
from pathlib import Path

from lora_core.errors import UserError, near
from reports import build


def main(argv: list[str]) -> int:
    """Builds a report for each study named in `argv` and prints where it is. Returns the exit code."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    folders = [study_folder(Path(options.output_dir), name) for name in options.study]
    for folder in folders:
        print(f"Report: {build(folder, _out(options.out, folder, len(folders)))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lora-sweep report",
        description="Write a study's report: HTML, Markdown with figures, CSV, JSON.",
    )
    parser.add_argument("study", nargs="+", metavar="STUDY", help="name of a finished or running study")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where it goes (default: the study's report/)")
    parser.add_argument("--output-dir", default="outputs", metavar="DIR", help="where studies lie (default: outputs)")
    return parser


def study_folder(output_dir: Path, name: str) -> Path:
    """The folder of study `name`. Raises UserError, with near matches, if there is none."""
    folder = output_dir / name
    if (folder / "study.json").is_file():
        return folder
    known = sorted(path.parent.name for path in output_dir.glob("*/study.json"))
    if not known:
        raise UserError(f"No study {name!r}: {output_dir} holds no studies. Other folder: --output-dir DIR.")
    there = near(name, known) or f" There: {', '.join(known[:5])}{', …' if len(known) > 5 else ''}."
    raise UserError(f"No study {name!r} in {output_dir}.{there}")


def _out(out: Path | None, folder: Path, studies: int) -> Path | None:
    """Several studies in one `out` get a folder each."""
    return out / folder.name if out is not None and studies > 1 else out
