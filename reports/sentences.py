"""The report's sentences. Each number in them comes from a computed object; nothing is decided here."""

from reports import lead_sentences
from reports.answer import MARGIN, Answer, Gain, Test
from reports.samples import Samples
from reports.wording import amount, count, listed, loss, percent, plural, ppl

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
    if answer.finalists:
        over = plural(answer.finalists[0].n, "seed")
        return f"{answer.winner.name} {verb} with a mean validation loss of {loss(answer.winner.loss)} over {over}"
    return f"{answer.winner.name} {verb} with a validation loss of {loss(answer.winner.loss)}"


def resume(answer: Answer) -> str:
    """What the command to resume is for."""
    return "To go on with the search" + (", should it be interrupted" if answer.state == "running" else "")


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
    if answer.counts.complete == 1:
        told.append("There is no runner-up: no other trial has completed.")
    return [*told, *confirmation(answer), *_cheapest(answer), *_also(answer), test_set(answer), *_savings(answer)]


def gist(answer: Answer) -> list[str]:
    """The same, as far as a terminal's window has room for it: of the runners-up the first one only."""
    if answer.winner is None:
        return body(answer)
    told = [f"That is {_beside(gain)}." for gain in answer.gains]
    return [*told, *_runner_up(answer), test_set(answer), *_savings(answer)]


def _savings(answer: Answer) -> list[str]:
    """What the pruner has saved, if there is one and a trial has ended."""
    saved = answer.savings
    if saved is None or not saved.planned:
        return []
    if not saved.steps:
        return ["The pruner has stopped no trial."]
    share = percent(100 * saved.steps / saved.planned)
    return [f"Pruning saved {saved.steps:,} of {plural(saved.planned, 'optimizer step')} ({share})."]


def confirmation(answer: Answer) -> list[str]:
    """What other seeds say of the winner."""
    if answer.finalists:
        winner, *others = answer.finalists
        leads = map(lead_sentences.against, answer.leads, others)
        return [f"{lead_sentences.spread(winner)}.", *leads, _kept(answer), *_own_seed(answer)]
    done, planned = answer.confirming
    if done < planned:
        return [f"{done} of {planned} trainings with other seeds have ended: nothing is confirmed yet."]
    if answer.repeated:
        return ["Some settings were trained with several seeds; the gains above are those of single runs."]
    return ["One seed per point: no spread known yet."]


def _runner_up(answer: Answer) -> list[str]:
    """What other seeds say of the winner and of the trial that comes next."""
    if not answer.finalists:
        following = [f"Next is {each.name}, {loss(each.behind)} behind." for each in answer.runners_up[:1]]
        return [" ".join([*confirmation(answer), *following])]
    winner, *others = answer.finalists
    leads = [
        f"It leads {other.name} by {lead_sentences.short(lead)}."
        for lead, other in zip(answer.leads, others, strict=True)
        if not other.failed
    ]
    return [f"{lead_sentences.spread(winner)}.", *leads[:1], _kept(answer)]


def _kept(answer: Answer) -> str:
    return f"The adapter kept is that of its own seed, with a validation loss of {loss(answer.own_loss)}."


def _own_seed(answer: Answer) -> list[str]:
    """The gain over the default settings in the same order of the data."""
    default = answer.gain("default")
    if default is None or answer.own_loss is None:
        return []
    nats = default.loss - answer.own_loss
    side = "above" if nats >= 0 else "below"
    return [f"The default settings were trained with that seed only, and lie {loss(abs(nats))} {side} it there."]


def _cheapest(answer: Answer) -> list[str]:
    """The trial that is hardly worse and costs less, or one that is worse and costs much less."""
    found = answer.cheapest
    if found is None:
        return _smaller(answer)
    within = "within the noise" if answer.finalists else f"within {percent(100 * MARGIN)} of its loss"
    size = f"{found.trainable_params:,.0f} trainable parameters, against {found.winners_params:,.0f}"
    return [f"The smallest {within} is {found.name}: {size}, and a loss higher by {loss(found.behind)}."]


def _smaller(answer: Answer) -> list[str]:
    found = answer.smaller
    if found is None:
        return []
    size = f"{amount(found.trainable_params)} trainable parameters, against {count(found.winners_params)}"
    seed = " with the seed of the search" if answer.finalists else ""
    return [f"Smaller, but worse, is {found.name}: {size}, and a loss higher by {loss(found.behind)}{seed}."]


def _also(answer: Answer) -> list[str]:
    """What a search of several objectives was to lower, too."""
    if not answer.also:
        return []
    return [f"The loss alone decides; the trade-offs show what became of {listed(answer.also)}, to be lowered too."]


def samples(found: Samples) -> str:
    """How the answers were made, and how many are as expected; or why there are none."""
    if found.why_not:
        return found.why_not
    right = [f"{found.right(name)} of {OVER.get(name, name)}" for name in found.adapters]
    return (
        f"The likeliest continuations of {plural(len(found.rows), 'prompt')} from the rows for tests or validation, up "
        f"to {plural(found.max_tokens, 'token')}. As expected (✓): {listed(right)}."
    )


def test_set(answer: Answer) -> str:
    """The gains on rows that chose nothing."""
    test = answer.test
    if not test.rows:
        return "There is no test set: the gains are those on the validation rows, which also chose the winner."
    if test.loss is None:
        later = answer.state != "complete"
        return "The test set is scored at the end." if later else "The winner was not scored on the test set."
    told = [_beside(gain) for gain in test.gains]
    beside = f", {listed(told)}" if told else ""
    return " ".join([f"On the test set: {loss(test.loss)}{beside}.", *_lower(test)])


def _lower(test: Test) -> list[str]:
    """The trials that would have won there."""
    assert test.loss is not None
    found = [f"{name} ({loss(own)})" for name, own in test.losses.items() if own < test.loss and name not in OVER]
    are = "is" if len(found) == 1 else "are"
    return [f"{listed(found)} {are} lower there; the winner was chosen on the validation rows."] if found else []


def _beside(gain: Gain) -> str:
    side = "below" if gain.nats >= 0 else "above"
    share = percent(abs(gain.percent))
    return f"{loss(abs(gain.nats))} nats per token ({share}) {side} {OVER[gain.over]} ({loss(gain.loss)})"


def _gain(answer: Answer, over: str) -> str:
    gain = answer.gain(over)
    if gain is None:
        return f"No gain over {OVER[over]} can be given: there is no such loss in this study."
    return _gain_sentence(gain, "confirmed" if answer.finalists else "completed")


def _gain_sentence(gain: Gain, trials: str) -> str:
    there = f"{OVER[gain.over]} ({loss(gain.loss)}, perplexity {ppl(gain.perplexity)})"
    if gain.nats > 0:
        return f"That is {loss(gain.nats)} nats per token ({percent(gain.percent)}) below {there}."
    if gain.nats == 0:
        return f"That equals {there}: the search has gained nothing."
    beaten = f"That is {loss(-gain.nats)} nats per token ({percent(-gain.percent)}) above {there}"
    return f"{beaten}: no {trials} trial beats {OVER[gain.over]}."
