"""`lora-sweep report STUDY…`: the command line of this package."""

import argparse
from pathlib import Path

from lora_core.errors import UserError, near
from reports import FORMATS, build


def main(argv: list[str]) -> int:
    """Builds the report of a study, or one that compares several, and prints where it is. Returns the exit code."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    output_dir, formats = Path(options.output_dir), _formats(options.format)
    folders = [study_folder(output_dir, name) for name in dict.fromkeys(options.study)]
    if len(folders) == 1:
        print(f"Report: {build(folders[0], options.out, formats)}")
    else:
        print(f"Report: {_compare(folders, options.out or output_dir / 'compared', formats)}")
    return 0


def _compare(folders: list[Path], out: Path, formats: list[str]) -> Path:
    from reports.writer import compare  # slow to import

    return compare(folders, out, formats)


def _formats(text: str) -> list[str]:
    found = text.split(",")
    for name in found:
        if name not in FORMATS:
            raise UserError(f"--format {text}: {name!r} is none of {', '.join(FORMATS)}.{near(name, FORMATS)}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lora-sweep report",
        description="Write a study's report, or compare several: HTML, Markdown with figures, CSV, JSON.",
    )
    parser.add_argument("study", nargs="+", metavar="STUDY", help="name of a finished or running study")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where it goes (default: the study's report/, or compared/)"
    )
    parser.add_argument(
        "--format", default=",".join(FORMATS), metavar="LIST", help="which files (default: %(default)s)"
    )
    parser.add_argument("--output-dir", default="outputs", metavar="DIR", help="where studies lie (default: outputs)")
    return parser


def study_folder(output_dir: Path, name: str) -> Path:
    """The folder of study `name`, or of a single run, train/NAME; its path is as good a name. Raises UserError, with
    near matches, if there is none."""
    if folder := find_study(output_dir, name):
        return folder
    kind = "training" if name.startswith("train/") else "study"
    found = [path.parent for at in ("*", "train/*") for path in sorted(output_dir.glob(f"{at}/study.json"))]
    known = [path.relative_to(output_dir).as_posix() for path in found]
    if not known:
        raise UserError(f"No {kind} {name!r}: {none_in(output_dir)}")
    there = near(name, known) or f" There: {', '.join(known[:5])}{', …' if len(known) > 5 else ''}."
    raise UserError(f"No {kind} {name!r} in {output_dir}.{there}")


def find_study(output_dir: Path, name: str) -> Path | None:
    """The same folder, or None if there is none."""
    return next((folder for folder in (output_dir / name, Path(name)) if (folder / "study.json").is_file()), None)


def none_in(output_dir: Path) -> str:
    """What to say of a folder without studies."""
    return f"{output_dir} holds no studies. Other folder: --output-dir DIR, or in train and search output_dir=DIR."
