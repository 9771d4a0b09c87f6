"""The closing lines of a command: what came out, by how much, and how to use it."""

import shlex
from pathlib import Path

from lora_core.records import StudyRecord, TrialRecord
from reports.study import load


def search_summary(folder: Path) -> str:
    """The winner and its gains, where everything is, and the command that uses the winner."""
    study = load(folder)
    lines = ["", *_answer(study.winner, study.base, study.default), f"Report  {folder / 'report' / 'report.html'}"]
    lines.append(f"MLflow  {study.record.tracking['link']}   (start it with: lora-sweep ui)")
    if study.winner is not None:
        lines += ["Use it", f"  {generate_command(study.record, study.winner)}"]
    return "\n".join(lines)


def train_summary(record: StudyRecord, trial: TrialRecord, base: float, fused: str | None) -> str:
    """The same for a single run; `base` is its loss before the first step."""
    value = trial.value
    if value is None:
        return f"\nThe run {trial.state}: {trial.reason}."
    lines = ["", f"Validation loss {value:.4f}, {_gain(value, base)} the base model ({base:.4f})."]
    lines += [f"Adapter {trial.adapter}", *([f"Merged  {fused}"] if fused else [])]
    lines += [f"MLflow  {record.tracking['link']}   (start it with: lora-sweep ui)"]
    return "\n".join([*lines, "Use it", f"  {generate_command(record, trial)}"])


def generate_command(record: StudyRecord, trial: TrialRecord) -> str:
    """The stock mlx_lm command that answers with this adapter."""
    words = ["mlx_lm.generate", "--model", record.model["folder"], "--adapter-path", str(trial.adapter)]
    return shlex.join([*words, "--prompt", "your prompt"])


def _answer(winner: TrialRecord | None, base: TrialRecord | None, default: TrialRecord | None) -> list[str]:
    if winner is None or winner.value is None:
        return ["No trial completed; the report lists how each one ended."]
    settings = "  ".join(f"{key}={value}" for key, value in winner.params.items())
    lines = [f"Winner  {winner.name}  validation loss {winner.value:.4f}", f"        {settings}"]
    for name, other in (("base model", base), ("default settings", default)):
        if other is not None and other.value is not None:
            lines.append(f"        {_gain(winner.value, other.value)} the {name} ({other.value:.4f})")
    return lines


def _gain(value: float, other: float) -> str:
    difference = other - value
    side = "below" if difference >= 0 else "above"
    return f"{abs(difference):.4f} ({abs(difference) / other:.1%}) {side}"
