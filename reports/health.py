"""What may be wrong with a search, or could be done better: each finding with the numbers it rests on."""

import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from reports import importance
from reports.answer import MARGIN
from reports.curve_checks import overfit, still_falling
from reports.edges import Edge, edges
from reports.finding import Finding
from reports.reproduce import RESUMED
from reports.study import Study, conditional_keys, has_axis, setting, value
from reports.trial_settings import has_rank, method_of, rank_of, rate_of
from reports.wording import amount, listed, loss, percent, plural
from reports.wording import setting as written

# Settings that change over which tokens the loss is taken, and how long a trial learns.
TOKENS = (
    "model.path", "data.path", "data.mask_prompt", "data.valid_fraction", "trainer.max_seq_length", "trainer.eval_rows",
)  # fmt: skip
LENGTH = ("trainer.iters", "trainer.epochs", "trainer.batch_size")


@dataclass
class Health:
    """`passed`: the checks that found nothing."""

    findings: list[Finding] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    why_not: str | None = None

    @property
    def advice(self) -> str:
        """Where the settings belong that findings propose."""
        proposed = any(finding.proposal for finding in self.findings)
        return "A setting written key=value belongs at the end of the command to do it again." if proposed else ""

    @property
    def rest(self) -> str:
        """Which checks found nothing, or could not be made."""
        told = [f"Nothing found by: {', '.join(self.passed)}."] if self.passed else []
        return " ".join([*told, self.why_not or ""]).strip()


def compute(study: Study) -> Health:
    if not study.completed:
        lost = failed(study)
        return Health(lost, why_not=f"The {'other ' if lost else ''}checks need a completed trial.")
    health = Health()
    if study.winner is None:
        health.why_not = f"Without a winner nothing can be said of: {', '.join(OF_THE_WINNER)}."
    for name, check in CHECKS.items():
        if study.winner is None and name in OF_THE_WINNER:
            continue
        found = check(study)
        health.findings += found
        health.passed += [] if found else [name]
    return health


def edge(study: Study) -> list[Finding]:
    return [_at_edge(each) for each in edges(study)]


def _at_edge(each: Edge) -> Finding:
    way, end = ("up", "upper") if each.side == "highest" else ("down", "lower")
    wider = shlex.quote(each.override)
    told = (
        f"The winner has {each.key} {written(each.value)}, at the {end} end of what was searched "
        f"({written(each.bound)}). To look beyond, {way} to {written(each.to)}: {wider}"
    )
    return Finding("edge of the space", told, asdict(each), wider)


def rank(study: Study) -> list[Finding]:
    """Whether a smaller rank would do, or a larger one might do better: each method by itself, since they differ in how
    much rank they need."""
    by_method: dict[str, dict[float, float]] = {}
    for trial in filter(has_rank, study.completed):
        if has_axis(study, trial, "lora_parameters.rank") and (own := value(trial)) is not None:
            best = by_method.setdefault(method_of(trial), {})
            best[rank_of(trial)] = min(own, best.get(rank_of(trial), own))
    found = [_of_rank(method, best, len(by_method) > 1) for method, best in sorted(by_method.items())]
    return [finding for finding in found if finding]


def _of_rank(method: str, best: dict[float, float], is_one_of_several: bool) -> Finding | None:
    """`best`: rank → lowest loss of a trial of this method."""
    if len(best) < 2:
        return None
    top = min(best, key=lambda each: best[each])
    behind = {each: (found - best[top]) / best[top] if best[top] else 0.0 for each, found in best.items()}
    smallest = min(each for each, share in behind.items() if share <= MARGIN)
    if smallest < top:
        other, end = smallest, "more rank buys little here."
        told = (
            f"the best trial of rank {other:g} comes within {percent(100 * behind[other])} of the best of rank {top:g}"
        )
    elif top == max(best):
        other, end = max(best.keys() - {top}), "rank may be too small."
        told = f"the largest rank tried, {top:g}, is the best by {percent(100 * behind[other])} over rank {other:g}"
    else:
        return None
    numbers = {"best_by_rank": {f"{each:g}": best[each] for each in sorted(best)}, "rank": other, "best_rank": top}
    text = f"{f'of {method}, ' if is_one_of_several else ''}{told} ({loss(best[other])} and {loss(best[top])}): {end}"
    return Finding("rank", text[0].upper() + text[1:], numbers | {"method": method, "behind": behind[other]})


def few_trials(study: Study) -> list[Finding]:
    axes, completed = len(importance.compared(study)), len(study.completed)
    if axes < 2 or completed >= importance.HINT_BELOW:
        return []
    over = f"the {axes} settings that all trials have" if conditional_keys(study) else f"{axes} searched settings"
    told = (
        f"{plural(completed, 'trial')} completed over {over}. Below {importance.HINT_BELOW} the order of "
        "the settings' importance is a hint, not a finding."
    )
    return [Finding("too few trials", told, {"completed": completed, "axes": axes, "needed": importance.HINT_BELOW})]


def versions(study: Study) -> list[Finding]:
    told = [note for note in study.record.notes if note.startswith(RESUMED)]
    git = str(study.record.environment.get("git") or "")
    if git.endswith("with changes"):
        told.append(f"The code had changes that are not in its commit ({git}).")
    return [Finding("versions", text) for text in told]


def comparable(study: Study) -> list[Finding]:
    """Settings that differ between trials and change what their losses mean."""
    found = []
    for keys, what in ((TOKENS, "the loss is over other tokens"), (LENGTH, "trials learn for longer or shorter")):
        for key in keys:
            values = sorted({written(setting(trial, key)) for trial in study.completed})
            if len(values) > 1:
                told = f"{key} differs between trials ({listed(values)}): {what}, which the ranking does not allow for."
                found.append(Finding("comparable losses", told, {"key": key, "values": values}))
    return found


def failed(study: Study) -> list[Finding]:
    lost = [trial for trial in study.searched if trial.state == "failed"]
    if not lost:
        return []
    reasons = Counter(trial.reason or "no reason recorded" for trial in lost)
    parts = listed([f"{count} {reason}" for reason, count in reasons.most_common()])
    told = f"{len(lost)} of {plural(len(study.searched), 'trial')} failed: {parts}."
    numbers: dict[str, Any] = {"failed": len(lost), "trials": len(study.searched), "reasons": dict(reasons)}
    diverged = [rate_of(trial) for trial in lost if (trial.reason or "").startswith("diverged")]
    if diverged and study.completed:
        highest = max(rate_of(trial) for trial in study.completed)
        numbers |= {"diverged_lowest_rate": min(diverged), "completed_highest_rate": highest}
        told += (
            f" The lowest learning rate that diverged is {amount(min(diverged))}, the highest that completed "
            f"{amount(highest)}."
        )
    return [Finding("failures", told, numbers)]


CHECKS: dict[str, Callable[[Study], list[Finding]]] = {
    "edge of the space": edge,
    "curves still falling": still_falling,
    "overfitting": overfit,
    "rank": rank,
    "too few trials": few_trials,
    "versions": versions,
    "comparable losses": comparable,
    "failures": failed,
}
OF_THE_WINNER = ("edge of the space", "curves still falling", "overfitting")
