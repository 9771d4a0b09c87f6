"""The tables: leaderboard, failures, how to reproduce, and `trials.csv`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_core.records import TrialRecord
from reports.answer import relative
from reports.seeds import Seeds
from reports.study import Study, finite, has_axis, perplexity, searched_keys, setting, value
from reports.wording import NOTHING
from reports.wording import setting as written

if TYPE_CHECKING:
    import pandas

# The numbers of a trial that every table and the CSV carry, in this order.
METRICS = (
    "best_val_loss", "final_val_loss", "val_perplexity", "scale_ratio", "multiplier", "trainable_params",
    "adapter_mb", "train_seconds", "tokens_per_second", "peak_memory_gb", "test_loss",
)  # fmt: skip


@dataclass
class LeaderRow:
    """One row of the leaderboard; `rank` counts completed trials of the search only, by their own seed. `mean`, `sd`
    and `seeds` are those of a confirmed trial. Axes that the trial does not have are not in `params`."""

    rank: int | None
    name: str
    role: str
    state: str
    reason: str | None
    params: dict[str, Any]
    metrics: dict[str, float | None]
    gain_nats: float | None  # against the base model
    gain_percent: float | None
    steps: int
    planned_steps: int
    best_step: int | None
    wins: bool
    mean: float | None
    sd: float | None
    seeds: int | None
    broken: str = ""  # which constraints, in words
    run: str | None = None  # the page of its MLflow run

    @property
    def pinned(self) -> bool:
        return self.role in ("base", "default")

    @property
    def standing(self) -> str:
        """Its state, and what keeps it from winning."""
        return f"{self.state}, {self.broken}" if self.broken else self.state

    def setting(self, key: str) -> str:
        """The value of an axis in words."""
        if self.role == "base":
            return ""
        return written(self.params[key]) if key in self.params else NOTHING


def leaderboard(study: Study) -> list[LeaderRow]:
    """Base and default, then completed trials by value, then the others by value as far as they came, those first
    that completed but break a constraint."""
    best = study.winner
    ranked = {trial.name: rank for rank, trial in enumerate(study.eligible, 1)}
    others = [trial for trial in study.searched if trial.name not in ranked]
    others.sort(key=lambda trial: (_order(trial), trial.number or 0))
    repeats = [trial for trial in study.trials if trial.role == "confirm"]
    pinned = [trial for trial in (study.base, study.default) if trial is not None]
    ordered = [*pinned, *study.eligible, *others, *repeats]
    confirmed = {each.name: each for each in study.confirmed}
    return [
        _leader_row(study, trial, ranked.get(trial.name), confirmed.get(trial.name), trial is best) for trial in ordered
    ]


def _order(trial: TrialRecord) -> tuple[int, float]:
    reached = value(trial)
    states = {"complete": 0, "running": 1, "pruned": 2, "failed": 3}
    return states.get(trial.state, 4), float("inf") if reached is None else reached


def _leader_row(study: Study, trial: TrialRecord, rank: int | None, seeds: Seeds | None, wins: bool) -> LeaderRow:
    own, base = value(trial), value(study.base)
    nats = base - own if own is not None and base is not None and trial.role != "base" else None
    return LeaderRow(
        rank, trial.name, trial.role, _state(study, trial), trial.reason,
        {key: setting(trial, key) for key in searched_keys(study) if has_axis(study, trial, key)}, _metrics(trial),
        nats, relative(nats, base) if nats is not None and base is not None else None,
        study.reached(trial), trial.planned_steps, trial.best_step, wins,
        seeds.mean if seeds else None, seeds.sd if seeds else None, seeds.n if seeds else None,
        study.broken(trial) if trial.role not in ("base", "default") else "", _run_page(study, trial),
    )  # fmt: skip


def _state(study: Study, trial: TrialRecord) -> str:
    """How it stands. One that was in training when the search was interrupted is recorded as running."""
    return "interrupted" if trial.state == "running" and study.record.state == "interrupted" else trial.state


def _run_page(study: Study, trial: TrialRecord) -> str | None:
    tracking, run = study.record.tracking, study.record.runs.get(trial.name)
    server = str(tracking.get("link", "")).partition("/#/")[0]
    if run is None or not server.startswith(("http://", "https://")):
        return None
    return f"{server}/#/experiments/{tracking['experiment_id']}/runs/{run}?workflowType=machine_learning"


def _metrics(trial: TrialRecord) -> dict[str, float | None]:
    names = [*METRICS, *(name for name in sorted(trial.metrics) if name not in METRICS)]
    found = {name: trial.metrics.get(name) for name in names}
    # One source for the perplexity: that of the loss the trial is judged by.
    own = value(trial)
    found["val_perplexity"] = perplexity(own) if own is not None else None
    return {name: number if finite(number) else None for name, number in found.items()}


def trials_frame(study: Study, rows: list[LeaderRow]) -> "pandas.DataFrame":
    """One row per trial, in the leaderboard's order: who, settings by key, metrics, steps, gain, adapter."""
    import pandas

    records = {trial.name: trial for trial in study.trials}
    return pandas.DataFrame([_flat(row, records[row.name]) for row in rows])


def _flat(row: LeaderRow, record: TrialRecord) -> dict[str, Any]:
    who = {"name": row.name, "role": row.role, "number": record.number, "repeat": record.repeat}
    how = {"state": row.state, "reason": row.broken or row.reason, "place": row.rank}
    steps = {"steps": row.steps, "planned_steps": row.planned_steps, "best_step": row.best_step}
    gain = {"gain_nats": row.gain_nats, "gain_percent": row.gain_percent}
    seeds = {"mean_val_loss": row.mean, "sd_val_loss": row.sd, "seeds": row.seeds}
    when = {"started": record.started, "ended": record.ended, "adapter": record.adapter}
    # Whole numbers stay whole where another row has none: pandas would turn the column into floats.
    return {key: _cell(found) for key, found in {**who, **how, **row.params, **row.metrics}.items()} | {
        key: _cell(found) for key, found in {**steps, **gain, **seeds, **when}.items()
    }


def _cell(found: Any) -> str:
    if found is None:
        return ""
    return repr(found) if isinstance(found, float) else str(found)


@dataclass
class Failure:
    name: str
    reason: str
    steps: int
    params: dict[str, Any]


def failures(study: Study) -> list[Failure]:
    """Each failed trial, the reference rows included."""
    failed = [trial for trial in study.trials if trial.state == "failed"]
    return [Failure(t.name, t.reason or "no reason recorded", t.step, t.params) for t in failed]
