"""The report's sentences. Each number in them comes from a computed object; nothing is decided here."""

from reports.answer import Answer, Gain
from reports.wording import listed, loss, percent, plural, ppl

OVER = {"base": "the base model", "default": "the default settings"}


def status(answer: Answer) -> str:
    """How far the search is and how its trials ended."""
    counts = answer.counts
    parts = [f"{getattr(counts, s)} {s}" for s in ("complete", "pruned", "failed") if getattr(counts, s)]
    ended = f"{counts.ended} of {plural(counts.planned, 'trial')} ended" + (f": {listed(parts)}." if parts else ".")
    if answer.state == "running":
        return f"The search is still running, so this report is partial. {ended}"
    if answer.state == "interrupted":
        return f"The search was interrupted, so this report is partial. {ended}"
    return ended


def headline(answer: Answer) -> str:
    if answer.winner is None:
        return "No winner yet" if answer.state == "running" else "No winner"
    verb = "wins" if answer.state == "complete" else "leads"
    return f"{answer.winner.name} {verb} with a validation loss of {loss(answer.winner.loss)}"


def no_winner(answer: Answer) -> str:
    """Why there is no winner."""
    if answer.counts.ended == 0:
        return "No trial has ended, so there is nothing to rank."
    why = [f"{count} {told}" for told, count in answer.reasons.items()]
    if answer.counts.complete:
        return f"No completed trial meets the constraints, so there is nothing to rank. {'; '.join(why)}."
    return f"No trial has completed, so there is nothing to rank. {'; '.join(why)}."


def body(answer: Answer) -> list[str]:
    """The answer in sentences, after its headline."""
    if answer.winner is None:
        return [no_winner(answer), *_savings(answer)]
    told = [_gain(answer, over) for over in OVER]
    if len(answer.runners_up) == 0:
        told.append("There is no runner-up: no other trial has completed.")
    told.append(spread(answer))
    return [*told, *_savings(answer)]


def _savings(answer: Answer) -> list[str]:
    """What the pruner has saved, if there is one and a trial has ended."""
    saved = answer.savings
    if saved is None or not saved.planned:
        return []
    if not saved.steps:
        return ["The pruner has stopped no trial."]
    share = percent(100 * saved.steps / saved.planned)
    return [f"Pruning saved {saved.steps:,} of {plural(saved.planned, 'optimizer step')} ({share})."]


def spread(answer: Answer) -> str:
    if answer.repeated:
        return "Some settings were trained with several seeds; the gains above are those of single runs."
    return "One seed per point: no spread known yet."


def _gain(answer: Answer, over: str) -> str:
    gain = answer.gain(over)
    if gain is None:
        return f"There is no loss of {OVER[over]} in this study, so no gain over it can be given."
    return _gain_sentence(gain)


def _gain_sentence(gain: Gain) -> str:
    there = f"{OVER[gain.over]} ({loss(gain.loss)}, perplexity {ppl(gain.perplexity)})"
    if gain.nats > 0:
        return f"That is {loss(gain.nats)} nats per token ({percent(gain.percent)}) below {there}."
    if gain.nats == 0:
        return f"That equals {there}: the search has gained nothing over it."
    beaten = f"That is {loss(-gain.nats)} nats per token ({percent(-gain.percent)}) above {there}"
    return f"{beaten}: no completed trial beats {OVER[gain.over]}."
