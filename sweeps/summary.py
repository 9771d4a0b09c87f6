"""The closing lines of a command: what came out, by how much, and how to use it; in the report's own words."""

from pathlib import Path

from lora_core.records import StudyRecord, TrialRecord
from reports import sentences, wording
from reports.answer import compute
from reports.study import Study, generate_command, load, searched_keys, short_names, test_loss


def search_summary(folder: Path) -> tuple[str, bool]:
    """The winner and its gains, where everything is, and the command that uses the winner; and whether there is a
    winner."""
    study = load(folder)
    answer = compute(study)
    lines = ["", sentences.headline(answer)]
    if answer.winner is not None:
        lines.append(f"  {wording.settings(answer.winner.params, short_names(searched_keys(study)))}")
    lines += [f"  {sentence}" for sentence in sentences.body(answer)]
    if (folder / "report" / "report.html").exists():
        lines.append(f"Report  {folder / 'report' / 'report.html'}")
    lines += _where(study.record, answer.command)
    return "\n".join(lines), answer.winner is not None


def study_note(study: Study) -> str:
    """The same in Markdown, as far as it says what was found."""
    from reports.markdown import code, escaped  # slow to import

    answer = compute(study)
    told = [sentences.status(answer), *sentences.body(answer)]
    if answer.winner is not None:
        told.insert(1, wording.settings(answer.winner.params, short_names(searched_keys(study))))
    lines = [f"**{escaped(sentences.headline(answer))}**", *map(escaped, told)]
    if answer.command is not None:
        lines.append(f"```sh\n{code(answer.command)}\n```")
    return "\n\n".join(lines)


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
        f"Adapter {trial.adapter}", *([f"Merged  {fused}"] if fused else []),
    ]  # fmt: skip
    study = Study(folder, record, [trial], {})
    return "\n".join([*lines, *_where(record, generate_command(study, trial))])


def _where(record: StudyRecord, command: str | None) -> list[str]:
    lines = [f"MLflow  {record.tracking['link']}"] if "link" in record.tracking else []
    lines.append(f"  ({wording.typed('lora-sweep ui')} serves it, unless a server does)")
    return [*lines, "Use it", f"  {command}"] if command else lines
