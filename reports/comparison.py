"""Several studies side by side: what each found, where they differ, and how far each was at the same budget."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from reports import answer, health, importance, samples, slices, tradeoffs
from reports.content import plain
from reports.curves import history
from reports.importance import Importance
from reports.reproduce import flat
from reports.seeds import Lead, lead
from reports.study import Study, searched_keys, short_names
from reports.tables import LeaderRow, leaderboard
from reports.wording import settings

LEADERS = 20  # shown; all trials are in trials.csv
# Settings that only say where things are, or how they are called.
PLACES = ("study", "storage", "output_dir", "adapter_path", "tracking.", "search.name", "cluster.", "trainer.slots")


@dataclass
class Member:
    """One study. `best`: the best so far after each of its ended trials, with the steps taken until then."""

    study: str
    answer: answer.Answer
    health: health.Health
    best: list["Reached"]
    importance: Importance
    rates: slices.Rates
    slices: slices.Slices
    tradeoffs: tradeoffs.Tradeoffs
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
class Reached:
    trials: int
    steps: int
    loss: float


@dataclass
class Budget:
    """What each study had reached when as much was spent as the cheapest of them spent in all."""

    unit: str
    spent: int
    reached: dict[str, float]  # study → loss; those without a completed trial by then are left out


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
    found = Comparison([_member(study) for study in studies], differing(studies), unlike(studies))
    found.budgets = [budget for unit in ("trials", "steps") if (budget := _budget(found.members, unit))]
    found.leaders = [] if found.unlike else leaders(studies)
    found.asked = asked(studies)
    best = found.ranked[:2]
    paired = not found.unlike and "seed" not in found.differing
    if paired and len(best) == 2 and all(each.answer.finalists for each in best):
        found.lead = lead(best[0].answer.finalists[0], best[1].answer.finalists[0])
    return found


def _member(study: Study) -> Member:
    told = answer.compute(study)
    names = short_names(searched_keys(study))
    params = {names[key]: found for key, found in told.winner.params.items()} if told.winner else {}
    rows = study.curves[study.winner.name] if study.winner else []
    curve = [(row["step"], row["val_loss"]) for row in rows]
    return Member(
        study.name, told, health.compute(study), reached(study), importance.compute(study), slices.rates(study),
        slices.slices(study), tradeoffs.compute(study), params, curve, study.record.sampler, study.record.command,
    )  # fmt: skip


def reached(study: Study) -> list[Reached]:
    """The best so far by what had been spent, pruned and failed trials included, in the order in which they ended."""
    losses = {point.name: point.loss for point in history(study).points if point.may_win}
    over = [trial for trial in study.searched if trial.state != "running"]
    found: list[Reached] = []
    trials, steps, lowest = 0, 0, math.inf
    for trial in sorted(over, key=lambda trial: trial.ended or ""):
        trials, steps = trials + 1, steps + trial.step
        lowest = min(lowest, losses.get(trial.name, math.inf))
        found += [Reached(trials, steps, lowest)] if math.isfinite(lowest) else []
    return found


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


def _budget(members: list[Member], unit: str) -> Budget | None:
    """None unless every study has something to show."""
    if not all(each.best for each in members):
        return None
    spent = min(getattr(each.best[-1], unit) for each in members)
    within = {each.study: [one.loss for one in each.best if getattr(one, unit) <= spent] for each in members}
    return Budget(unit, spent, {study: losses[-1] for study, losses in within.items() if losses})


def differing(studies: list[Study]) -> dict[str, list[str]]:
    """Settings, space, contents and versions that are not the same in all."""
    each = [_facts(study) for study in studies]
    keys = list(dict.fromkeys(key for facts in each for key in facts))
    rows = {key: [facts.get(key, "–") for facts in each] for key in keys}
    return {key: texts for key, texts in rows.items() if len(set(texts)) > 1}


def _facts(study: Study) -> dict[str, str]:
    record = study.record
    config = {key: text for key, text in flat(record.config).items() if not key.startswith((*PLACES, "search.space"))}
    space = {f"axis {text.partition('=')[0]}": text.partition("=")[2] for text in record.space}
    contents = {f"{name} contents": flat(info).get("fingerprint", "–") for name, info in _infos(study).items()}
    return {**space, **config, **contents, **flat(record.environment)}


def _infos(study: Study) -> dict[str, dict[str, Any]]:
    return {"model": study.record.model, "data": study.record.data}


def unlike(studies: list[Study]) -> list[str]:
    """What must be the same for losses to be comparable, and is not."""
    found = []
    for name in ("model", "data"):
        if len({_infos(study)[name].get("fingerprint") for study in studies}) > 1:
            found.append(f"the {name}")
    for key in ("trainer.max_seq_length", "trainer.eval_rows", "data.mask_prompt", "data.valid_fraction"):
        if len({flat(study.record.config).get(key) for study in studies}) > 1:
            found.append(key)
    return found
