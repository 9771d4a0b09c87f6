"""What won, and by how much: the numbers of the report's first section."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lora_core.records import TrialRecord
from reports.seeds import Lead, Seeds, lead
from reports.study import Study, generate_command, perplexity, test_loss, value
from reports.wording import typed

RUNNERS_UP = 3
MUCH_SMALLER = 0.5  # this part of the winner's trainable parameters, or less
CONFIRM = "search.confirm.k=3 search.confirm.repeats=2"  # the seeds that tell a lead from noise
MARGIN = 0.01  # of a loss: what counts as a small difference where no noise is known


@dataclass
class Contender:
    """A completed trial; `loss` is the mean over its seeds where it was confirmed, and `behind` how far this lies
    above the winner's, in nats per token."""

    name: str
    params: dict[str, Any]
    loss: float
    perplexity: float | None
    behind: float


@dataclass
class Gain:
    """How far the winner's loss lies below that of a reference row: positive is better."""

    over: str  # base or default
    loss: float
    perplexity: float | None
    nats: float
    percent: float  # of the reference's loss


@dataclass
class Counts:
    """The searched trials by how they stand; `planned` is the study's total."""

    planned: int
    ended: int
    complete: int
    pruned: int
    failed: int
    running: int


@dataclass
class Test:
    """What the test set says. `rows`: 0 where there is none. `loss`: the winner's adapter's, None while not scored;
    `losses`: by name, of all that were scored."""

    rows: int = 0
    loss: float | None = None
    gains: list[Gain] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)


@dataclass
class Savings:
    """Optimizer steps that the trials stopped by the pruner did not take, and those planned for all that ended."""

    steps: int
    planned: int


@dataclass
class Cheapest:
    """A trial with fewer trainable parameters than the winner."""

    name: str
    trainable_params: float
    winners_params: float
    behind: float  # its loss, or mean, above the winner's


@dataclass
class Answer:
    """`finalists`: the trials that were confirmed, best first, and `leads`: the first one's over each other; empty
    where nothing was. `confirming`: how many of the trainings with other seeds have ended, and of how many.
    `own_loss`: that of the adapter that is kept. `also`: the objectives after the first."""

    state: str  # of the study
    counts: Counts
    repeated: bool
    resume_command: str
    winner: Contender | None = None
    gains: list[Gain] = field(default_factory=list)
    runners_up: list[Contender] = field(default_factory=list)
    own_loss: float | None = None
    finalists: list[Seeds] = field(default_factory=list)
    leads: list[Lead] = field(default_factory=list)
    confirming: tuple[int, int] = (0, 0)
    cheapest: Cheapest | None = None  # of those that are hardly worse, the one with the fewest parameters
    smaller: Cheapest | None = None  # where there is none: the best of those that are much smaller, by its own seed
    test: Test = field(default_factory=Test)
    adapter: str | None = None
    command: str | None = None
    reasons: dict[str, int] = field(default_factory=dict)  # why trials did not complete → how many
    savings: Savings | None = None  # None: no pruner
    also: list[str] = field(default_factory=list)

    @property
    def confirm_command(self) -> str | None:
        """What trains the best again with other seeds, where a search has ended without."""
        if self.state != "complete" or self.repeated or not (self.runners_up and self.resume_command):
            return None
        return f"{self.resume_command} {CONFIRM}"

    def gain(self, over: str) -> Gain | None:
        return next((gain for gain in self.gains if gain.over == over), None)

    def lead(self, over: str) -> Lead | None:
        return next((lead for lead in self.leads if lead.over == over), None)


def compute(study: Study) -> Answer:
    """The answer of `study`, whatever state it is in; without a completed trial it has no winner."""
    answer = Answer(
        study.record.state, counts(study), study.repeated, typed(study.record.resume_command),
        reasons=reasons(study), savings=savings(study), also=study.record.objective.split(", ")[1:],
    )  # fmt: skip
    best = study.winner
    if best is None:
        return answer
    answer.own_loss, answer.confirming, answer.finalists = value(best), study.confirming, study.confirmed
    answer.leads = [lead(answer.finalists[0], other) for other in answer.finalists[1:]]
    answer.winner, *answer.runners_up = _contenders(study)
    answer.gains = gains(study, answer.winner.loss)
    answer.cheapest = _cheapest(study, answer)
    answer.smaller = None if answer.cheapest else _smaller(study, best)
    answer.test = _test(study, best)
    answer.adapter, answer.command = best.adapter, generate_command(study, best)
    return answer


def counts(study: Study) -> Counts:
    complete, pruned, failed, running = map(study.count, ("complete", "pruned", "failed", "running"))
    planned = study.record.n_trials or len(study.searched)
    return Counts(planned, complete + pruned + failed, complete, pruned, failed, running)


def reasons(study: Study) -> dict[str, int]:
    """Reason → number of trials that were pruned, failed or cannot win for it, most frequent first."""
    found: dict[str, int] = {}
    for trial in study.searched:
        if trial.state in ("pruned", "failed"):
            told = f"{trial.state}: {trial.reason or 'no reason recorded'}"
        elif constraint := study.broken(trial).partition(" (")[0]:
            told = f"complete, but {constraint}"
        else:
            continue
        found[told] = found.get(told, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def savings(study: Study) -> Savings | None:
    if study.record.pruner in ("", "none"):
        return None
    ended = [trial for trial in study.searched if trial.state != "running"]
    saved = sum(trial.planned_steps - trial.step for trial in ended if trial.state == "pruned")
    return Savings(saved, sum(trial.planned_steps for trial in ended))


Loss = Callable[[TrialRecord | None], float | None]


def gains(study: Study, best_loss: float, loss_of: Loss = value) -> list[Gain]:
    """The gains over base and default, those that have a loss."""
    rows = [("base", study.base), ("default", study.default)]
    return [gain for over, row in rows if (gain := _gain(over, loss_of(row), best_loss)) is not None]


def _test(study: Study, best: TrialRecord) -> Test:
    own = test_loss(best)
    losses = {trial.name: loss for trial in study.trials if (loss := test_loss(trial)) is not None}
    found = [] if own is None else gains(study, own, test_loss)
    return Test((study.record.data.get("rows") or {}).get("test", 0), own, found, losses)


def _gain(over: str, reference: float | None, best_loss: float) -> Gain | None:
    if reference is None:
        return None
    nats = reference - best_loss
    return Gain(over, reference, perplexity(reference), nats, relative(nats, reference))


def _cheapest(study: Study, answer: Answer) -> Cheapest | None:
    """None where the winner itself is the cheapest. Without other seeds, a loss within `MARGIN` is hardly worse."""
    assert answer.winner is not None
    sizes = {trial.name: trial.metrics.get("trainable_params") for trial in study.eligible}
    own, best = sizes[answer.winner.name], answer.winner.loss
    behind = {each.name: value(each) for each in study.eligible}
    near = {name: loss - best for name, loss in behind.items() if loss is not None and loss - best <= MARGIN * best}
    if answer.finalists:
        relied = {each.name for each in answer.finalists if not each.failed}
        within = {each.over for each in answer.leads if each.beyond_noise is False} & relied
        near = {each.name: each.behind for each in answer.runners_up if each.name in within}
    smaller = {name: size for name in near if (size := sizes[name]) is not None and own is not None and size < own}
    if not smaller or own is None:
        return None
    name = min(smaller, key=lambda each: (smaller[each], near[each]))
    return Cheapest(name, smaller[name], own, near[name])


def _smaller(study: Study, best: TrialRecord) -> Cheapest | None:
    size, own = best.metrics.get("trainable_params"), value(best)
    for trial in study.eligible:  # best first
        less, loss = trial.metrics.get("trainable_params"), value(trial)
        if size and less and own is not None and loss is not None and less <= MUCH_SMALLER * size and loss > own:
            return Cheapest(trial.name, less, size, loss - own)
    return None


def relative(nats: float, reference: float) -> float:
    """`nats` in percent of `reference`; 0 where there is nothing to divide by."""
    return 100 * nats / reference if reference else 0.0


def _contenders(study: Study) -> list[Contender]:
    """The winner and its runners-up: what was confirmed, by its mean, or the best by their own loss."""
    rows = [(each.name, each.params, each.mean) for each in study.confirmed]
    if not rows:
        best = study.eligible[: RUNNERS_UP + 1]
        rows = [(trial.name, trial.params, own) for trial in best if (own := value(trial)) is not None]
    first = rows[0][2]
    return [Contender(name, params, loss, perplexity(loss), loss - first) for name, params, loss in rows]
