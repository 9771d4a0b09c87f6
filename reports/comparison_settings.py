"""The figures of a comparison that show how the losses depend on the settings."""

from dataclasses import replace

from reports import parallel
from reports.comparison import Comparison, Member
from reports.comparison_series import LOSS, colour, grouped, panel
from reports.panels import Panel
from reports.slices import Slice
from reports.study import short_names

LINES = 30  # of a study; more hide those of another


def importance(found: Comparison) -> Panel:
    """A place for each setting, that which matters most to any of the studies first."""
    highest: dict[str, float] = {}
    for member in found.members:
        for key, share in member.importance.shares.items():
            highest[key] = max(share, highest.get(key, 0.0))
    keys = sorted(highest, key=lambda key: -highest[key])
    points = [[(float(keys.index(key)), share) for key, share in m.importance.shares.items()] for m in found.members]
    ticks = {float(place): name for place, name in enumerate(short_names(keys).values())}
    return Panel("", "share of the importance", grouped(found, points), ticks=ticks)


def rates(found: Comparison) -> Panel:
    points = [[(p.at, p.loss) for rate in each.rates.groups for p in rate.points] for each in found.members]
    return panel("learning rate", LOSS, grouped(found, points), log_x=True)


def slices(found: Comparison) -> list[Panel]:
    """One for each setting that a study has searched, two where it is a choice in one and a range in another."""
    return [_slice(found, own, name) for own, name in _searched(found) if any(own)]


def _slice(found: Comparison, own: list[Slice | None], name: str) -> Panel:
    there = [one for one in own if one]
    points = [[(p.at, p.loss) for p in one.points] if one else [] for one in own]
    drawn = panel(name, LOSS, grouped(found, points), any(one.log for one in there))
    drawn.ticks = there[0].ticks
    return drawn


def all_at_once(found: Comparison) -> list[Panel]:
    """The best completed trials, through the settings that each study which has some has searched in the same way."""
    with_trials = [place for place, member in enumerate(found.members) if member.slices.each]
    shared = [own for own, _ in _searched(found) if any(own) and all(own[place] for place in with_trials)]
    if len(shared) < 2:
        return []
    groups = [lines for place in with_trials for lines in _lines(found.members[place], colour(place))]
    return [parallel.panel([_joined(found, own) for own in shared], short_names(_keys(found)), groups)]


def _joined(found: Comparison, own: list[Slice | None]) -> Slice:
    """The trials of all studies, each with the name of its study."""
    first = next(one for one in own if one)
    pairs = [(member, one) for member, one in zip(found.members, own, strict=True) if one]
    points = [replace(p, name=f"{member.study} {p.name}") for member, one in pairs for p in one.points]
    return replace(first, points=points, log=any(one.log for _, one in pairs))


def _lines(member: Member, colour: str) -> list[parallel.Lines]:
    """Those of a study's best trials, a wide one for its winner."""
    losses = {f"{member.study} {p.name}": p.loss for one in member.slices.each for p in one.points}
    best = set(sorted(losses, key=lambda name: losses[name])[:LINES])
    winner = {f"{member.study} {member.answer.winner.name}"} if member.answer.winner else set()
    name = "" if winner else member.study  # once in the legend
    others = parallel.Lines(name, best - winner, colour, 0.9)
    return [others, parallel.Lines(member.study, winner, colour, 4.0)]


def _searched(found: Comparison) -> list[tuple[list[Slice | None], str]]:
    """For each setting, as a choice and as a range: what each study has of it, and its short name."""
    names = short_names(_keys(found))
    return [(_of_a_kind(found, key, is_choice), name) for key, name in names.items() for is_choice in (False, True)]


def _keys(found: Comparison) -> list[str]:
    """Those of the settings that varied in any of the studies."""
    return list(dict.fromkeys(one.key for member in found.members for one in member.slices.each))


def _of_a_kind(found: Comparison, key: str, is_choice: bool) -> list[Slice | None]:
    """That of each study which has searched `key` in this way; choices of all stand at the same places."""
    by_key = [{one.key: one for one in member.slices.each} for member in found.members]
    own = [one if (one := each.get(key)) and bool(one.ticks) == is_choice else None for each in by_key]
    texts = _in_order(list(dict.fromkeys(text for one in own if one for text in one.ticks.values())))
    return [_placed(one, texts) if one and is_choice else one for one in own]


def _placed(one: Slice, texts: list[str]) -> Slice:
    points = [replace(point, at=float(texts.index(one.ticks[point.at]))) for point in one.points]
    return replace(one, points=points, ticks={float(place): text for place, text in enumerate(texts)})


def _in_order(texts: list[str]) -> list[str]:
    """Numbers by size; else as they come."""
    try:
        return sorted(texts, key=float)
    except ValueError:
        return texts
