"""The closing lines of a command: what came out, by how much, and how to use it; in the report's own words.

They fit a window of 24 lines of 80 characters, where names and paths are of the usual length.
"""

import os
import shlex
from pathlib import Path

from lora_core.records import StudyRecord, TrialRecord
from reports import sentences, wording
from reports.answer import compute
from reports.study import Study, generate_command, searched_keys, short_names, test_loss
from sweeps.standing import standing
from sweeps.study_folder import command_on


def search_summary(folder: Path) -> tuple[str, bool]:
    """The winner and its gains, where everything is, and the commands that use the winner; and whether there is a
    winner."""
    study = standing(folder)
    answer = compute(study)
    lines = ["", sentences.headline(answer)]
    if answer.winner is not None:
        lines.append(f"  {wording.settings(answer.winner.params, short_names(searched_keys(study)))}")
    lines += [f"  {sentence}" for sentence in sentences.gist(answer)]
    lines.append(f"  {sentences.status(answer)} Training took {wording.clock(study.seconds)}.")
    if answer.adapter is not None:
        lines.append(f"Adapter {near(answer.adapter)}")
    if (folder / "report" / "report.html").exists():
        lines.append(f"Report  {near(folder / 'report' / 'report.html')}")
    lines += _mlflow(study.record)
    if answer.adapter is not None:
        stock = [answer.command] if answer.command else []
        again = [command_on(study.record, folder, *words) for words in (("generate", "…"), ("report",))]
        lines += _use(*stock, *again)
    return "\n".join(lines), answer.winner is not None


def train_summary(folder: Path, record: StudyRecord, trial: TrialRecord, base: float, fused: str | None) -> str:
    """The same for a single run; `base` is its loss before the first step."""
    if trial.value is None or trial.state != "complete":
        return f"\nThe run {trial.state}: {trial.reason}."
    gain, tested = base - trial.value, test_loss(trial)
    side = "below" if gain >= 0 else "above"
    lines = [
        "", f"Validation loss {wording.loss(trial.value)}",
        f"  That is {wording.loss(abs(gain))} nats per token ({wording.percent(100 * abs(gain) / base)}) {side} "
        f"the loss before the first step ({wording.loss(base)}).",
        *([] if tested is None else [f"Test loss {wording.loss(tested)}"]),
        *([f"Adapter {near(trial.adapter)}"] if trial.adapter else []), *([f"Merged  {near(fused)}"] if fused else []),
    ]  # fmt: skip
    command = generate_command(Study(folder, record, [trial], {}), trial)
    return "\n".join([*lines, *_mlflow(record), *(_use(command) if command else [])])


def near(path: Path | str) -> str:
    """As one would type it here."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else str(path)


def _use(*commands: str) -> list[str]:
    return ["Use it", *(f"  {command}" for command in commands)]


def _mlflow(record: StudyRecord) -> list[str]:
    """The page of the study or run, and what serves it."""
    uri = record.tracking.get("uri", "")
    is_default = uri in ("", os.environ.get("MLFLOW_TRACKING_URI"), "sqlite:///mlflow.db")
    words = ["lora-sweep", "ui", record.study, *([] if is_default else ["--uri", uri])]
    lines = [f"MLflow  {record.tracking['link']}"] if "link" in record.tracking else []
    return [*lines, f"  ({wording.typed(shlex.join(words))} serves it, unless a server does)"]
