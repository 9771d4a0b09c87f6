"""`lora-sweep status [STUDY]`: how studies stand, from what lies on disk."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lora_core.errors import UserError
from lora_core.records import TrialRecord
from reports.command import none_in, study_folder
from reports.study import Row
from reports.wording import amount, clock, loss, plural, setting
from sweeps.standing import Standing, standing
from sweeps.work import Running

if TYPE_CHECKING:
    from rich.console import Group

SECONDS = 2.0  # between two looks
_STATES = ("complete", "pruned", "failed")


def main(argv: list[str]) -> int:
    """Prints one study, or a line for each; with --watch until it ends. Returns the exit code; raises UserError if
    there is no such study."""
    given = _arguments(argv)
    place = Path(given.output_dir)
    if given.study is None:
        if given.watch:
            raise UserError("--watch needs the name of a study: lora-sweep status STUDY --watch")
        print("\n".join(overview(place)))
        return 0
    folder = study_folder(place, given.study)
    if given.watch:
        _watch(folder)
    else:
        print("\n".join(described(standing(folder))))
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lora-sweep status", description="How a study stands, or all of them.")
    parser.add_argument("study", nargs="?", metavar="STUDY", help="its name; train/NAME for a single run; default: all")
    parser.add_argument("--watch", action="store_true", help="look again every two seconds until it ends")
    parser.add_argument("--output-dir", default="outputs", metavar="DIR", help="where studies lie (default: outputs)")
    return parser.parse_args(argv)


def overview(place: Path) -> list[str]:
    """A line for each study, the newest first."""
    all_of_them = [standing(path.parent) for path in place.glob("*/study.json")]
    if not all_of_them:
        raise UserError(none_in(place))
    newest = sorted(all_of_them, key=lambda each: each.record.created, reverse=True)
    width = max(len(each.record.study) for each in newest)
    return [f"{each.record.study:<{width}}  {_state(each):<11}  {_counts(each)}{_best(each)}" for each in newest]


def described(study: Standing) -> list[str]:
    """A few lines about one study."""
    first, *rest = _whole(study)
    return [first, *(_under_way(study, trial) for trial in study.running), *rest]


def _under_way(study: Standing, trial: TrialRecord) -> str:
    again = "to go on from its checkpoint" if trial.name in study.saved else "to be run again from step 0"
    how = "at step" if study.at_work else f"begun, {again}; was at"
    return f"{trial.name}  {how} {study.reached(trial)} of {trial.planned_steps}{_settings(trial.params)}"


def _whole(study: Standing) -> list[str]:
    """The same without the trials that are running."""
    lines = [f"{study.record.study}  {_state(study)}  {_counts(study)}"]
    if study.reasons:
        lines.append("Failed: " + ", ".join(f"{count} × {reason}" for reason, count in study.reasons.items()))
    if best := study.winner:
        lines.append(f"Best {loss(best.value)}  {best.name}{_settings(best.params)}")
    lines.append(f"{amount(study.total_steps)} steps in {clock(study.seconds)}{_left(study)}")
    if not study.at_work and study.record.state != "complete":
        lines.append(f"No process is at work on it. To go on: {study.record.resume_command}")
    return lines


def _state(study: Standing) -> str:
    """What it is doing. One that was killed could not write that it was."""
    if study.at_work:
        return "running"
    return "interrupted" if study.record.state == "running" else study.record.state


def _counts(study: Standing) -> str:
    found = [(sum(trial.state == state for trial in study.searched), state) for state in _STATES]
    parts = [f"{count} {state}" for count, state in found if count]
    of = f"{len(study.ended)} of {plural(study.record.n_trials, 'trial')} ended"
    return f"{of} ({', '.join(parts)})" if parts else of


def _best(study: Standing) -> str:
    return f"  best {loss(study.winner.value)}" if study.winner else ""


def _settings(params: dict) -> str:
    return "".join(f"  {key.rpartition('.')[2]} {setting(value)}" for key, value in params.items())


def _left(study: Standing) -> str:
    if not study.at_work:
        return ""
    seconds = study.seconds_left
    return ", time left unknown until a trial ends" if seconds is None else f", about {clock(seconds)} left"


def _as_table(study: Standing, width: int) -> "Group":
    """What `described` says, with the running trials as the search itself shows them."""
    from rich.console import Group
    from rich.text import Text

    from sweeps.live import table

    trials = [_in_training(trial, study.curves[trial.name]) for trial in study.running]
    return Group(Text("\n".join(_whole(study))), *([table(trials, width)] if trials else []))


def _in_training(trial: TrialRecord, rows: list[Row]) -> Running:
    losses, last = [row["val_loss"] for row in rows], rows[-1] if rows else {}
    return Running(trial, trial.planned_steps, last.get("step", 0), last.get("train_loss"), losses)


def _watch(folder: Path) -> None:
    """Shows it anew until nobody is at work on it; in a log, whenever something has changed."""
    from rich.console import Console

    from sweeps.live import OnScreen

    console = Console(highlight=False, soft_wrap=True)
    on_screen, last = OnScreen(console), list[str]()
    with on_screen.live(auto_refresh=False) as live:
        while (found := standing(folder)).at_work:
            lines = described(found)
            if console.is_terminal:
                on_screen.renderable = _as_table(found, console.width)
                live.refresh()
            elif lines[:-1] != last:  # but for the time
                print("\n".join(lines), flush=True)
                last = lines[:-1]
            time.sleep(SECONDS)
    print("\n".join(described(found)))
