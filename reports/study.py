"""A study as it lies on disk, in one object: the record, its trials and their learning curves."""

import math
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_core.config import TrainConfig, loads_in_mlx_lm
from lora_core.records import StudyRecord, TrialRecord, load_metrics, load_study, load_trials
from reports.constraints import broken, constraints_of
from reports.seeds import Seeds, ranked
from reports.wording import typed

# A `train` run is read as a study of one trial.
SEARCHED = ("trial", "train")
Row = dict[str, Any]


@dataclass
class Study:
    """`trials`: base, default, then by number. `curves`: trial name → the rows of its `metrics.jsonl`."""

    folder: Path
    record: StudyRecord
    trials: list[TrialRecord]
    curves: dict[str, list[Row]]

    @property
    def name(self) -> str:
        return self.record.study

    @property
    def base(self) -> TrialRecord | None:
        return self._of_role("base")

    @property
    def default(self) -> TrialRecord | None:
        return self._of_role("default")

    @property
    def searched(self) -> list[TrialRecord]:
        """The search's own trials, by number."""
        return [trial for trial in self.trials if trial.role in SEARCHED]

    @property
    def completed(self) -> list[TrialRecord]:
        """The searched trials that ran to their end and have a value, best first."""
        done = [trial for trial in self.searched if trial.state == "complete" and value(trial) is not None]
        return sorted(done, key=lambda trial: (value(trial), trial.number or 0))

    def reached(self, trial: TrialRecord) -> int:
        """The steps it has done; of one that has not ended, those up to its last evaluation."""
        rows = self.curves.get(trial.name) if trial.state == "running" else None
        return int(rows[-1]["step"]) if rows else trial.step

    def broken(self, trial: TrialRecord) -> str:
        """Which constraints of the search the trial breaks, in words; empty if none."""
        return broken(trial, constraints_of(self.record.config))

    @property
    def eligible(self) -> list[TrialRecord]:
        """Those of `completed` that may win: they break no constraint."""
        return [trial for trial in self.completed if not self.broken(trial)]

    @property
    def winner(self) -> TrialRecord | None:
        """Of those that may win, the one with the best mean over its own seed and its repeats; where none was
        confirmed, or some are still to be, that with the lowest `best_val_loss`."""
        best = next(iter(self.confirmed), None)
        return next((trial for trial in self.eligible if best is None or trial.name == best.name), None)

    @property
    def finalists(self) -> list[TrialRecord]:
        """The best `search.confirm.k` by their own seed: those that are trained again."""
        return self.eligible[: self._confirm["k"]] if self.record.kind == "search" else []

    @property
    def confirmed(self) -> list[Seeds]:
        """What was trained again, best mean first: the finalists, and those of an earlier, smaller total. Empty as
        long as a repeat of a finalist is missing: means over different numbers of seeds would not be fair."""
        done, planned = self.confirming
        if not planned or done < planned:
            return []
        return ranked([self._seeds(trial) for trial in self.eligible if self.repeats(trial)])

    @property
    def confirming(self) -> tuple[int, int]:
        """How many of the finalists' repeats have ended, and how many there are to be."""
        planned = self._confirm["repeats"]
        done = sum(trial.repeat <= planned for finalist in self.finalists for trial in self.repeats(finalist))
        return done, planned * len(self.finalists)

    def repeats(self, trial: TrialRecord) -> list[TrialRecord]:
        """Those of `trial` that have ended, whatever their end."""
        own = [t for t in self.trials if t.role == "confirm" and t.number == trial.number]
        return [repeat for repeat in own if repeat.state != "running"]

    def _seeds(self, trial: TrialRecord) -> Seeds:
        repeats = self.repeats(trial)
        losses = {each.repeat: value(each) for each in (trial, *repeats) if each.state == "complete"}
        found = {repeat: loss for repeat, loss in losses.items() if loss is not None}
        return Seeds(trial.name, trial.params, found, 1 + len(repeats) - len(found))

    @property
    def _confirm(self) -> dict[str, int]:
        return self.record.config.get("search", {}).get("confirm") or {"k": 0, "repeats": 0}

    @property
    def repeated(self) -> bool:
        """Whether any setting was trained with more than one seed."""
        return any(trial.role == "confirm" or trial.repeat > 0 for trial in self.trials)

    def count(self, state: str) -> int:
        return Counter(trial.state for trial in self.searched)[state]

    def _of_role(self, role: str) -> TrialRecord | None:
        return next((trial for trial in self.trials if trial.role == role), None)


def load(folder: Path) -> Study:
    """The study in `folder`. Raises UserError if its `study.json` is missing or broken."""
    record = load_study(folder)
    trials = load_trials(folder)
    curves = {trial.name: _rows(folder / trial.name) for trial in trials}
    return Study(folder, record, trials, curves)


def _rows(folder: Path) -> list[Row]:
    """The evaluations with a finite loss, by step: a diverged trial's last row is NaN."""
    rows = [row for row in load_metrics(folder) if finite(row.get("val_loss")) and finite(row.get("step"))]
    return sorted(rows, key=lambda row: row["step"])


def finite(number: Any) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)


def value(trial: TrialRecord | None) -> float | None:
    """The trial's `best_val_loss`, or None while it has no finite one."""
    return trial.value if trial is not None and finite(trial.value) else None


def test_loss(trial: TrialRecord | None) -> float | None:
    """The loss of its adapter on the test set, or None while there is none."""
    found = trial.metrics.get("test_loss") if trial is not None else None
    return found if finite(found) else None


def perplexity(loss: float) -> float | None:
    """exp(loss), or None where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else None


def setting(trial: TrialRecord, key: str) -> Any:
    """What `trial` had at the searched `key`: drawn, or from its configuration; None for the base model."""
    if key in trial.params or trial.role == "base":
        return trial.params.get(key)
    found: Any = trial.config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    derived = {"lora_parameters.scale": "alpha", "lora_parameters.scale_ratio": "ratio"}
    if found is None and key in derived:
        # Either is null in the configuration where it follows from the other.
        return getattr(TrainConfig.from_dict(trial.config).lora_parameters, derived[key])
    return None if isinstance(found, dict) else found


def conditional_keys(study: Study) -> set[str]:
    """The axes that only some trials have."""
    return set(study.record.config.get("search", {}).get("when") or {})


def has_axis(study: Study, trial: TrialRecord, key: str) -> bool:
    """Whether `key` was searched in this trial too."""
    return key in trial.params or trial.role not in ("trial", "confirm") or key not in conditional_keys(study)


def searched_keys(study: Study) -> list[str]:
    """The keys of the space, then any other that a trial carries."""
    keys = [str(axis["key"]) for axis in study.record.axes if axis.get("key")]
    keys += [key for trial in study.searched for key in trial.params]
    return list(dict.fromkeys(keys))


def short_names(keys: list[str]) -> dict[str, str]:
    """Key → its last part, where that names one key only."""
    last = {key: key.rpartition(".")[2] for key in keys}
    seen = Counter(last.values())
    return {key: name if seen[name] == 1 else key for key, name in last.items()}


def generate_command(study: Study, trial: TrialRecord) -> str | None:
    """The stock mlx_lm command that answers with the trial's adapter, or, where mlx_lm cannot load that, with the model
    that it was merged into; None if there is neither."""
    adapter, base = trial.adapter, study.record.model
    model = base.get("folder") or base.get("path")
    if not adapter or not model:
        return None
    words = ["mlx_lm.generate", "--model", str(model), "--adapter-path", adapter]
    if not loads_in_mlx_lm(trial.config.get("train_type", "lora"), base.get("bits")):
        merged = study.folder / "best" if study.record.kind == "search" else Path(adapter) / "fused"
        if not study.record.config.get("fuse") or not merged.is_dir():
            return None
        words[2:] = [str(merged)]
    return typed(f'{shlex.join(words)} --prompt "…"')
