"""What a comparison of studies says. Each number comes from the computed object."""

from reports import heatmap
from reports.comparison import Comparison, Member
from reports.comparison_budget import Budget
from reports.comparison_settings import LINES, all_at_once
from reports.lead_sentences import verdict
from reports.noise import mean_and_spread
from reports.wording import NOTHING, listed, loss, percent, plural, settings, signed

ONE_SCALE = "One colour scale for all."


def headline(found: Comparison) -> str:
    best = found.ranked
    if found.unlike:
        return "These studies cannot be ranked"
    if not best:
        return "None of the studies has a winner"
    return f"{best[0].study} has the lowest loss, {_told(best[0])}"


def body(found: Comparison) -> list[str]:
    told = [_partial(member) for member in found.members if member.answer.state != "complete"]
    if found.unlike:
        return [*told, f"The losses cannot be compared: the studies differ in {listed(found.unlike)}."]
    told += [_behind(found.ranked[0], other) for other in found.ranked[1:]]
    if len({member.seeds == 1 for member in found.ranked}) > 1:
        told.append("A loss of one seed, the lowest of many trials, tends to be too low beside a mean over several.")
    if found.lead:
        told.append(f"The lead over {found.ranked[1].study} is {verdict(found.lead)}.")
    elif len(found.ranked) > 1:
        told.append("The winners share no seeds to compare them by, so whether the lead is noise is not known.")
    return told + [_at(budget, _samplers(found)) for budget in found.budgets]


def _told(member: Member) -> str:
    winner = member.answer.winner
    assert winner is not None  # only those with a winner are ranked
    return f"{loss(winner.loss)} over {plural(member.seeds, 'seed')} ({winner.name})"


def _partial(member: Member) -> str:
    counts = member.answer.counts
    ended = f"{counts.ended} of {plural(counts.planned, 'trial')} ended"
    return f"{member.study} is {member.answer.state}, so this is partial: {ended}."


def _behind(best: Member, other: Member) -> str:
    assert best.answer.winner is not None and other.answer.winner is not None
    low, high = best.answer.winner.loss, other.answer.winner.loss
    if high == low:
        return f"{other.study} has the same loss: {_told(other)}."
    share = f" ({percent(100 * (high - low) / low)})" if low else ""
    return f"{other.study} is {loss(high - low)} nats per token behind{share}: {_told(other)}."


def _samplers(found: Comparison) -> dict[str, str]:
    """Study → its sampler in brackets, where they are not all the same: what one gains over random search."""
    samplers = {member.study: member.sampler for member in found.members}
    return {study: f" ({sampler})" for study, sampler in samplers.items() if len(set(samplers.values())) > 1}


def _at(budget: Budget, samplers: dict[str, str]) -> str:
    what = plural(budget.spent, "trial" if budget.unit == "trials" else "optimizer step")
    ordered = sorted(budget.reached.items(), key=lambda reached: reached[1])
    reached = listed([f"{study}{samplers.get(study, '')} {loss(found)}" for study, found in ordered])
    return f"After {what}, the most that all have, the best so far: {reached}."


def rows(found: Comparison) -> dict[str, list[str]]:
    """The table of what each study found: label → a text for each."""
    columns = [_column(member) for member in found.members]
    return {label: [column[label] for column in columns] for label in columns[0]}


def _column(member: Member) -> dict[str, str]:
    told = member.answer
    base, default = told.gain("base"), told.gain("default")
    shares = ", ".join(f"{key.rpartition('.')[2]} {share:.2f}" for key, share in member.importance.shares.items())
    return {
        "state": told.state,
        "sampler": member.sampler,
        "trials": f"{told.counts.ended} of {told.counts.planned} ended, {told.counts.complete} complete",
        "optimizer steps": f"{member.best[-1].steps:,}" if member.best else NOTHING,
        "winner": told.winner.name if told.winner else NOTHING,
        "loss": loss(told.winner.loss) if told.winner else NOTHING,
        "seeds": str(member.seeds) if told.winner else NOTHING,
        "settings": settings(member.params, {}) or NOTHING,
        "gain over base": signed(base.nats if base else None),
        "gain over default": signed(default.nats if default else None),
        "test_loss": loss(told.test.loss),
        "importance": shares or member.importance.why_not or NOTHING,
    }


def captions(found: Comparison) -> dict[str, str]:
    """Figure → its caption."""
    trials = listed(
        [f"{each.study} {plural(each.answer.counts.complete, 'completed trial')}" for each in found.members]
    )
    return {
        "leaders": _leaders(found),
        "best": f"The lowest loss so far, by trials that had ended and by the steps they had taken: {trials}.",
        "importance": "How much each setting separates a study's best trials from all of them, where enough have "
        "completed. The shares of a study add up to 1.",
        "curves": "The winner of each study.",
        "heatmap": _maps(found, "heatmap"),
        "rate_map": _maps(found, "rate_map"),
        "adapter": _adapters(found),
        "parallel": _parallel(found),
        "slices": "The completed trials of each study, by each setting that one of them has searched.",
        "noise": _noise(found),
        "samples": f"What the base model and the winners make of {plural(len(found.asked), 'prompt')}."
        if found.asked
        else "Not shown: the studies have no prompt in common that their winners have answered.",
        "rates": "The completed trials of each study; not drawn of one with fewer than three learning rates.",
        "tradeoffs": "The completed trials of each study; not drawn of one whose trials all cost the same.",
    }


def _leaders(found: Comparison) -> str:
    if found.leaders:
        return f"The best {plural(len(found.leaders), 'completed trial')} of all studies, each by its own seed."
    return "No ranking: the losses cannot be compared." if found.unlike else "No trial has completed."


def _noise(found: Comparison) -> str:
    means = [f"{each.study} {mean_and_spread(seeds)}" for each in found.members for seeds in each.answer.finalists]
    if not means:
        return "Not drawn: no study has trained a setting with several seeds."
    return f"The loss of each seed. Mean ± standard deviation of the sample: {'; '.join(means)}."


def _maps(found: Comparison, name: str) -> str:
    maps = {member.study: getattr(member, name) for member in found.members}
    told = _of_each({study: one.why_not or one.content for study, one in maps.items()})
    drawn = [one for one in maps.values() if not one.why_not]
    scales = "Each study has its own colour scale." if found.unlike else ONE_SCALE
    return " ".join([*[heatmap.MEANING][: len(drawn)], *([scales] if len(drawn) > 1 else []), told])


def _adapters(found: Comparison) -> str:
    """Norms can be compared whatever the losses are of."""
    facts = {member.study: member.adapter for member in found.members}
    told = _of_each({study: one.why_not or one.caption for study, one in facts.items()})
    return told if sum(not one.why_not for one in facts.values()) < 2 else f"{ONE_SCALE} {told}"


def _of_each(told: dict[str, str]) -> str:
    return " ".join(f"{study}: {text[0].lower()}{text[1:]}" for study, text in told.items())


def _parallel(found: Comparison) -> str:
    if not all_at_once(found):
        return "Not drawn: fewer than two settings varied in all studies."
    shown = [f"{member.study} {min(LINES, member.answer.counts.complete)}" for member in found.members]
    return (
        "Each line is a completed trial, through the settings that all studies have searched, from the lowest value in "
        f"any of them to the highest. Drawn are the best of each study ({listed(shown)}); wide: its winner."
    )
