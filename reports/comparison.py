"""Several studies side by side: what each found, where they differ, and how far each was at the same budget."""

from dataclasses import asdict, dataclass, field
from typing import Any

from reports import adapter, answer, health, heatmap, importance, samples, slices, tradeoffs
from reports.comparison_budget import Budget, Reached, budgets, reached
from reports.comparison_differences import differing, unlike
from reports.content import plain
from reports.heatmap import Heatmap
from reports.importance import Importance
from reports.seeds import Lead, lead
from reports.study import Study, searched_keys, short_names
from reports.tables import LeaderRow, leaderboard
from reports.wording import settings

LEADERS = 20  # shown; all trials are in trials.csv


@dataclass
class Member:
    """One study. `best`: the best so far after each of its ended trials, with the steps taken until then."""

    study: str
    answer: answer.Answer
    health: health.Health
    best: list[Reached]
    importance: Importance
    rates: slices.Rates
    slices: slices.Slices
    heatmap: Heatmap
    rate_map: Heatmap
    tradeoffs: tradeoffs.Tradeoffs
    adapter: adapter.AdapterFacts
    params: dict[str, Any]  # of the winner, by short name
    curve: list[tuple[float, float]]  # of the winner, by step
    sampler: str
    command: str

    @property
    def seeds(self) -> int:
        """How many the winner's loss is the mean of."""
        return self.answer.finalists[0].n if self.answer.finalists else 1


@dataclass
class Leader:
    """One of the best trials of all studies, by its own seed."""

    study: str
    trial: str
    settings: str
    loss: float
    parameters: float | None
    seconds: float | None


@dataclass
class Asked:
    """A prompt that several studies have answered; `answers`: "base" or study → answer of its winner."""

    prompt: str
    expected: str
    answers: dict[str, str]


@dataclass
class Comparison:
    """`differing`: setting → its text in each study. `unlike`: what makes the losses incomparable. `leaders`: the best
    trials of all studies, where they are comparable. `asked`: prompts that all have answered. `lead`: that of the best
    study's winner over the next one's, where both were trained with the same seeds."""

    members: list[Member]
    differing: dict[str, list[str]]
    unlike: list[str] = field(default_factory=list)
    budgets: list[Budget] = field(default_factory=list)
    leaders: list[Leader] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    lead: Lead | None = None

    @property
    def ranked(self) -> list[Member]:
        """Those with a winner, best first."""
        found = [(each.answer.winner.loss, each) for each in self.members if each.answer.winner]
        return [each for _, each in sorted(found, key=lambda pair: pair[0])]

    def to_json(self) -> dict[str, Any]:
        return plain(asdict(self))


def compute(studies: list[Study]) -> Comparison:
    differ, incomparable = differing(studies), unlike(studies)
    # Losses that cannot be compared get no common colour scale.
    groups = [[study] for study in studies] if incomparable else [studies]
    ratios = [one for group in groups for one in heatmap.together(group, heatmap.RATIO)]
    rates = [one for group in groups for one in heatmap.together(group, heatmap.RATE)]
    members = [_member(*each) for each in zip(studies, ratios, rates, strict=True)]
    found = Comparison(members, differ, incomparable, asked=asked(studies))
    found.budgets = budgets({member.study: member.best for member in members})
    found.leaders = [] if incomparable else leaders(studies)
    best = found.ranked[:2]
    paired = not incomparable and "seed" not in differ
    if paired and len(best) == 2 and all(each.answer.finalists for each in best):
        found.lead = lead(best[0].answer.finalists[0], best[1].answer.finalists[0])
    return found


def _member(study: Study, ratios: Heatmap, rates: Heatmap) -> Member:
    told = answer.compute(study)
    names = short_names(searched_keys(study))
    params = {names[key]: found for key, found in told.winner.params.items()} if told.winner else {}
    rows = study.curves[study.winner.name] if study.winner else []
    curve = [(row["step"], row["val_loss"]) for row in rows]
    return Member(
        study.name, told, health.compute(study), reached(study), importance.compute(study), slices.rates(study),
        slices.slices(study), ratios, rates, tradeoffs.compute(study), adapter.compute(study), params, curve,
        study.record.sampler, study.record.command,
    )  # fmt: skip


def leaders(studies: list[Study]) -> list[Leader]:
    """The best of the trials that may win, best first."""
    found = [_leader(study, row) for study in studies for row in leaderboard(study) if row.rank is not None]
    return sorted(found, key=lambda leader: leader.loss)[:LEADERS]


def _leader(study: Study, row: LeaderRow) -> Leader:
    told, own = settings(row.params, short_names(searched_keys(study))), row.metrics["best_val_loss"]
    assert own is not None  # it has a rank
    return Leader(study.name, row.name, told, own, row.metrics["trainable_params"], row.metrics["train_seconds"])


def asked(studies: list[Study]) -> list[Asked]:
    """In the order of the first study."""
    each = [{row.prompt: row for row in samples.load(study.folder).rows} for study in studies]
    shared = [row for prompt, row in each[0].items() if all(prompt in rows for rows in each)]
    return [
        Asked(row.prompt, row.expected, _answers(studies, [rows[row.prompt].answers for rows in each]))
        for row in shared
    ]


def _answers(studies: list[Study], answers: list[dict[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for study, own in zip(studies, answers, strict=True):
        if "base" in own:
            found["base"] = own["base"]
        if study.winner is not None and study.winner.name in own:
            found[study.name] = own[study.winner.name]
    return found
