"""What MLflow shows as the description of a study's run, and of those of its trials, in Markdown."""

from reports import sentences, wording
from reports.answer import compute
from reports.study import Study, searched_keys, short_names
from reports.tables import LeaderRow, leaderboard
from reports.wording import loss, plural


def study_note(study: Study) -> str:
    """What was found, in the report's words. MLflow shows the first five lines or so."""
    from reports.markdown import code, escaped  # slow to import

    answer = compute(study)
    told = [*sentences.body(answer), sentences.status(answer)]
    if answer.winner is not None:
        told.insert(0, wording.settings(answer.winner.params, short_names(searched_keys(study))))
    note = "  \n".join([f"**{escaped(sentences.headline(answer))}**", *map(escaped, told)])
    return note if answer.command is None else f"{note}\n\n```sh\n{code(answer.command)}\n```"


def trial_notes(study: Study, report: str) -> dict[str, str]:
    """Trial → what became of it, its settings, and the address of the study's `report`."""
    from reports.markdown import escaped

    rows, names = leaderboard(study), short_names(searched_keys(study))
    ranked, notes = sum(row.rank is not None for row in rows), {}
    for row in rows:
        settings = wording.settings(row.params, names) if row.role != "base" else ""
        lines = [escaped(f"{_fate(row, ranked)}{_reached(row)}"), escaped(settings), f"[Report]({report})"]
        notes[row.name] = "  \n".join(filter(None, lines))
    return notes


def _fate(row: LeaderRow, ranked: int) -> str:
    if row.pinned:
        return wording.LABELS[row.role].capitalize()
    if row.state != "complete":
        return f"{row.state.capitalize()} at step {row.steps} of {row.planned_steps}"
    if row.rank is None:
        return "Trained again with another seed" if row.role == "confirm" else f"Cannot win, {row.broken}"
    return f"Place {row.rank} of {plural(ranked, 'completed trial')}{', the winner' if row.wins else ''}"


def _reached(row: LeaderRow) -> str:
    """The rest of the line."""
    own = row.metrics["best_val_loss"]
    told = [row.reason] if row.reason else []
    told += [f"validation loss {loss(own)}"] if own is not None else []
    told += [f"mean {loss(row.mean)} over {plural(row.seeds, 'seed')}"] if row.seeds else []
    return f": {', '.join(told)}" if told else ""
