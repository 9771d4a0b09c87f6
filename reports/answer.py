"""What won, and by how much: the numbers of the report's first section."""

from dataclasses import dataclass, field
from typing import Any

from lora_core.records import TrialRecord
from reports.study import Study, adapter_folder, generate_command, perplexity, value

RUNNERS_UP = 3


@dataclass
class Contender:
    """A completed trial; `behind` is its loss above the winner's, in nats per token."""

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
class Savings:
    """Optimizer steps that the trials stopped by the pruner did not take, and those planned for all that ended."""

    steps: int
    planned: int


@dataclass
class Answer:
    state: str  # of the study
    counts: Counts
    repeated: bool
    resume_command: str
    winner: Contender | None = None
    gains: list[Gain] = field(default_factory=list)
    runners_up: list[Contender] = field(default_factory=list)
    adapter: str | None = None
    command: str | None = None
    reasons: dict[str, int] = field(default_factory=dict)  # why trials did not complete → how many
    savings: Savings | None = None  # None: no pruner

    def gain(self, over: str) -> Gain | None:
        return next((gain for gain in self.gains if gain.over == over), None)


def compute(study: Study) -> Answer:
    """The answer of `study`, whatever state it is in; without a completed trial it has no winner."""
    answer = Answer(
        study.record.state, counts(study), study.repeated, study.record.resume_command,
        reasons=reasons(study), savings=savings(study),
    )  # fmt: skip
    best = study.winner
    best_loss = value(best)
    if best is None or best_loss is None:
        return answer
    contenders = [_contender(trial, best_loss) for trial in study.eligible[: RUNNERS_UP + 1]]
    answer.winner, answer.runners_up = contenders[0], contenders[1:]
    answer.gains = gains(study, best_loss)
    answer.adapter, answer.command = adapter_folder(study, best), generate_command(study, best)
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


def gains(study: Study, best_loss: float) -> list[Gain]:
    """The gains over base and default, those that have a loss."""
    rows = [("base", study.base), ("default", study.default)]
    return [gain for over, row in rows if (gain := _gain(over, row, best_loss)) is not None]


def _gain(over: str, row: TrialRecord | None, best_loss: float) -> Gain | None:
    reference = value(row)
    if reference is None:
        return None
    nats = reference - best_loss
    return Gain(over, reference, perplexity(reference), nats, relative(nats, reference))


def relative(nats: float, reference: float) -> float:
    """`nats` in percent of `reference`; 0 where there is nothing to divide by."""
    return 100 * nats / reference if reference else 0.0


def _contender(trial: TrialRecord, best_loss: float) -> Contender:
    own = value(trial)
    assert own is not None, "completed trials have a value"
    return Contender(trial.name, trial.params, own, perplexity(own), own - best_loss)
