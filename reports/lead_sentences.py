"""What is said of a trial's losses over several seeds, and of its lead over another trial."""

from reports.seeds import RULE, Lead, Seeds
from reports.wording import NOTHING, loss, plural, signed


def spread(seeds: Seeds) -> str:
    failed = f"; {plural(seeds.failed, 'repeat')} failed" if seeds.failed else ""
    if seeds.sd is None:
        return f"It has one loss only, so no spread{failed}"
    return f"Its losses spread by {loss(seeds.sd)} (standard deviation, n = {seeds.n}{failed})"


def against(lead: Lead, other: Seeds) -> str:
    failed = f", {plural(other.failed, 'repeat')} failed" if other.failed else ""
    spread = "" if other.sd is None else f", standard deviation {loss(other.sd)}"
    whom = f"{other.name} (mean {loss(other.mean)}{spread}, n = {other.n}{failed})"
    if other.failed and lead.nats < 0:
        return f"It is {loss(-lead.nats)} behind {whom}, which comes after it for what failed."
    return f"Its lead over {whom} is {verdict(lead)}."


def short(lead: Lead) -> str:
    """A lead, how uncertain it is, and whether it is more than noise."""
    return f"{_measured(lead)}: {judged(lead)}"


def verdict(lead: Lead) -> str:
    """The same with how often it was one, and by which rule it is judged."""
    if lead.margin is None:
        return short(lead)
    return f"{_measured(lead)} of the same seed, ahead in {lead.ahead}: {judged(lead)} ({RULE})"


def _measured(lead: Lead) -> str:
    if lead.margin is None:
        return f"{loss(lead.nats)} with the one seed that both have"
    return f"{loss(lead.nats)} ± {loss(lead.margin)} over {lead.pairs} pairs"


def behind(lead: Lead | None) -> str:
    """How far a trial lies behind the winner, for a table."""
    if lead is None:
        return NOTHING
    return signed(lead.nats) + ("" if lead.margin is None else f" ± {loss(lead.margin)}")


def judged(lead: Lead | None) -> str:
    """Whether a lead is more than noise, in as few words as a table has room for."""
    if lead is None:
        return NOTHING
    if lead.beyond_noise is None:
        return "no spread known"
    return "larger than the noise" if lead.beyond_noise else "within the noise"
