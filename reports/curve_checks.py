"""The health checks of the learning curves: whether they still fall, or rise again."""

from statistics import median
from typing import Any

from reports.answer import MARGIN
from reports.finding import Finding
from reports.study import Row, Study, finite, setting, value
from reports.wording import loss, percent, plural

DROPOUT = "lora_parameters.dropout"
LAST = 0.25  # of a trial's steps: what counts as its end


def still_falling(study: Study) -> list[Finding]:
    falls = {trial.name: fall for trial in study.completed if (fall := _last_fall(study.curves[trial.name]))}
    falling = [name for name, fall in falls.items() if fall["share"] > MARGIN]
    if study.winner is None or study.winner.name not in falling:
        return []
    own = falls[study.winner.name]
    numbers = own | {"falling": len(falling), "completed": len(study.completed), "iters": 2 * own["to"]}
    longer = f"trainer.iters={numbers['iters']}"
    told = (
        f"The winner's loss still fell by {loss(own['nats'])} nats per token ({percent(100 * own['share'])}) between "
        f"steps {own['from']} and {own['to']}, its last evaluations, and by more than {percent(100 * MARGIN)} in "
        f"{len(falling)} of {plural(len(study.completed), 'completed trial')}. Longer trials may do better, and rank "
        f"in another order: {longer}"
    )
    return [Finding("curves still falling", told, numbers, longer)]


def _last_fall(rows: list[Row]) -> dict[str, Any] | None:
    """How far the loss fell in the last quarter of the steps. Between the last two evaluations a learning rate that
    decays may have had little left."""
    last = rows[-1] if rows else None
    early = [row for row in rows if last and row["step"] <= (1 - LAST) * last["step"]]
    if not last or not early or not early[-1]["val_loss"]:
        return None
    before = early[-1]
    nats = before["val_loss"] - last["val_loss"]
    return {"nats": nats, "share": nats / before["val_loss"], "from": int(before["step"]), "to": int(last["step"])}


def overfit(study: Study) -> list[Finding]:
    rises = {trial.name: rise for trial in study.completed if (rise := _rise(study.curves[trial.name]))}
    risen = [name for name, rise in rises.items() if rise["share"] > MARGIN]
    if study.winner is None or study.winner.name not in risen:
        return []
    own = rises[study.winner.name]
    train = f", where the training loss is {loss(own['train_loss'])}" if finite(own["train_loss"]) else ""
    helped, numbers, proposal = _dropout(study)
    told = (
        f"The winner's validation loss rose by {loss(own['nats'])} nats per token ({percent(100 * own['share'])}) from "
        f"step {own['best_step']} to its last, {own['to']}{train}; {len(risen)} of "
        f"{plural(len(study.completed), 'completed trial')} rose by more than {percent(100 * MARGIN)}. {helped}"
    )
    numbers |= {"risen": len(risen), "completed": len(study.completed)}
    return [Finding("overfitting", told, own | numbers, proposal)]


def _rise(rows: list[Row]) -> dict[str, Any] | None:
    """How far the last loss lies above the lowest one after step 0."""
    after = [row for row in rows if row["step"] > 0]
    if not after:
        return None
    best, last = min(after, key=lambda row: row["val_loss"]), after[-1]
    nats = last["val_loss"] - best["val_loss"]
    return {
        "nats": nats, "share": nats / best["val_loss"] if best["val_loss"] else 0.0, "best_step": int(best["step"]),
        "to": int(last["step"]), "train_loss": last.get("train_loss"),
    }  # fmt: skip


def _dropout(study: Study) -> tuple[str, dict[str, Any], str]:
    """Whether the trials with dropout did better than those without, with its numbers; or a setting to find out by."""
    groups: dict[bool, list[float]] = {True: [], False: []}
    for trial in study.completed:
        if (own := value(trial)) is not None:
            groups[bool(setting(trial, DROPOUT))].append(own)
    dropped, kept = groups[True], groups[False]
    if not dropped:
        proposal = f"{DROPOUT}=0.0,0.05,0.1"
        return f"No trial had dropout. Whether it helps: {proposal}", {}, proposal
    if not kept:
        return "Every trial had dropout, so whether it helps cannot be told.", {}, ""
    numbers = {"with": median(dropped), "n_with": len(dropped), "without": median(kept), "n_without": len(kept)}
    verb = "lower" if numbers["with"] < numbers["without"] else "not lower"
    medians = f"median {loss(numbers['with'])}, n = {len(dropped)}; {loss(numbers['without'])}, n = {len(kept)}"
    return f"Losses with dropout are {verb} than without ({medians}).", numbers, ""
