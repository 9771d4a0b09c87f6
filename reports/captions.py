"""The sentence under each figure, with its numbers."""

from reports import curves
from reports.content import Content
from reports.wording import listed, plural

STEPS_TOLD = 6  # of those at which trials were pruned


def history(content: Content) -> str:
    shown = content.history
    pruned = sum(point.state == "pruned" for point in shown.points)
    told = [f"{plural(len(shown.points) - pruned, 'completed trial')} (dots), {pruned} pruned (crosses)."]
    if shown.without_value:
        told.append(f"{plural(shown.without_value, 'failed trial')} not drawn.")
    losses = [point.loss for point in shown.points]
    return " ".join([*told, curves.outside(shown.frame, losses, shown.references)]).strip()


def importance(content: Content) -> str:
    found = content.importance
    method = f"{found.method} over {plural(found.completed, 'completed trial')}:"
    what = f"how much each setting separates the best {found.best} from all of them; shares add up to 1."
    outside = f"{plural(found.left_out, 'trial')} outside the present space left out." if found.left_out else ""
    pruned = content.answer.counts.pruned
    stopped = f"{plural(pruned, 'pruned trial')} {'is' if pruned == 1 else 'are'} not counted." if pruned else ""
    sometimes = f"Not every trial has {listed(found.not_everywhere)}: left out." if found.not_everywhere else ""
    return " ".join(part for part in (method, what, stopped, outside, sometimes, found.caution) if part)


def slices(content: Content) -> str:
    shown = content.slices.each
    lacking = " Trials without a setting are not drawn there." if content.slices.some_lack else ""
    return f"The completed trials by each of {plural(len(shown), 'searched setting')} that varied.{lacking}"


def parallel(content: Content) -> str:
    found = content.slices
    if len(found.each) < 2:
        return found.why_not or "Not drawn: only one searched setting varied."
    ends = " A line ends where its trial lacks a setting." if found.some_lack else ""
    return (
        f"Each line is a completed trial; each setting goes from its lowest value at the bottom to its highest.{ends}"
    )


def learning(content: Content) -> str:
    found = content.curves
    told = [f"{plural(len(found.lines), 'curve')} of the validation loss."]
    if found.training:
        told.append("The training loss of the winner is the mean since the evaluation before.")
    if found.pruned:
        told.append(f"× marks where a trial was pruned: {pruned_at(found.pruned)}.")
    if found.repeats:
        told.append(f"{plural(found.repeats, 'training')} with other seeds not drawn.")
    references = {} if found.base is None else {"base": found.base}
    return " ".join([*told, curves.outside(found.frame, found.losses, references)]).strip()


def pruned_at(steps: dict[int, int]) -> str:
    """`7 at step 30 and 2 at step 60`; of many steps, the first ones."""
    first = [f"{count} at step {step}" for step, count in list(steps.items())[:STEPS_TOLD]]
    later = sum(list(steps.values())[STEPS_TOLD:])
    return listed([*first, *([f"{later} later"] if later else [])])


FIGURES = {
    "history": history,
    "importance": importance,
    "heatmap": lambda content: content.heatmap.caption,
    "rate_map": lambda content: content.rate_map.caption,
    "rates": lambda content: content.rates.caption,
    "slices": slices,
    "tradeoffs": lambda content: content.tradeoffs.caption,
    "curves": learning,
    "noise": lambda content: content.noise.caption,
    "adapter": lambda content: content.adapter.caption,
}


def captions(content: Content) -> dict[str, str]:
    """Figure → its caption, or why it is not drawn."""
    told = {name: getattr(content, name).why_not or tell(content) for name, tell in FIGURES.items()}
    return told | {"parallel": parallel(content)}
