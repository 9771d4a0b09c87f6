"""What MLflow is told of a study and its trials, as plain values: names, tags, params, points of curves."""

import json
import math
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from lora_core.records import StudyRecord, TrialRecord
from lora_core.trial import TrialSpec

OBJECTIVE = "best_val_loss"
CURVES = ("val_loss", "train_loss", "learning_rate", "tokens_per_second")
STATUSES = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
OPTUNA_STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "PRUNED"}
OF_ADAPTERS = ("lora_parameters.",)
OF_TRAINING = (*OF_ADAPTERS, "optimizer.", "train_type", "num_layers")
_SHORT = {
    "rank": "r", "scale": "α", "scale_ratio": "α/r ", "dropout": "drop ", "num_layers": "layers ",
    "learning_rate": "lr ", "weight_decay": "wd ", "batch_size": "batch ",
}  # fmt: skip

Point = tuple[str, float, int]  # metric, value, step
SPLITS = {"val_loss": "valid", "test_loss": "test"}  # the rows that an adapter's loss is of


@dataclass(frozen=True)
class Data:
    """Rows as MLflow knows them: what a run was made with, or what a loss is of."""

    name: str
    digest: str


def data_of(study: StudyRecord, split: str) -> Data:
    """A split of the study's data. The digest is that of all splits."""
    name = PurePath(study.data["path"].rpartition(":")[2]).name or "data"
    return Data(name if split == "train" else f"{name}-{split}", study.data["fingerprint"][:36])


def run_name(spec: TrialSpec | TrialRecord) -> str:
    """`trial-0007 r16 α/r 2.5`: the trial and the values of its axes."""
    return f"{spec.name} {short_settings(spec)}".strip()[:200]


def short_settings(spec: TrialSpec | TrialRecord) -> str:
    """`r16 α/r 2.5`: the values of its axes."""
    return " ".join(f"{_label(key)}{_number(value)}" for key, value in spec.params.items())


def _label(key: str) -> str:
    last = key.rpartition(".")[2]
    return _SHORT.get(last, f"{last} ")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _text(value)


def _text(value: Any) -> str:
    """As YAML would show it, so that a param can be copied into a command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def params(spec: TrialSpec | TrialRecord) -> dict[str, str]:
    """Every scalar and list of the configuration by its dotted key, and axes that are whole config groups; but for
    settings of what is not there: adapters without adapters, and any training of the base model."""
    values = {**spec.params, **_dotted(spec.config)}
    absent = OF_TRAINING if spec.role == "base" else OF_ADAPTERS if values.get("train_type") == "full" else ()
    return {key: _text(value) for key, value in values.items() if not key.startswith(absent)}


def _dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        flat.update(inner)
    return flat


def keeps_all(study: StudyRecord) -> bool:
    """Whether every adapter is told as soon as its trial ends; else those that are kept, at the end."""
    return study.config.get("tracking", {}).get("keep", "all") == "all"


def study_tags(study: StudyRecord) -> dict[str, str]:
    """Tags of a study's own run. They may change when it is resumed, as params may not."""
    return {
        "sweep.role": "study",
        **_shared_tags(study),
        "sweep.sampler": study.sampler,
        "sweep.pruner": study.pruner,
        "sweep.space": "\n".join(study.space),
        "sweep.objective": f"{study.direction} {study.objective}",
        "sweep.budget": f"{study.n_trials} trials",
        "sweep.command": study.command,
    }


def trial_tags(study: StudyRecord, spec: TrialSpec | TrialRecord) -> dict[str, str]:
    tags = {"sweep.role": spec.role, "sweep.trial": spec.name, **_shared_tags(study)}
    if spec.role == "confirm":
        tags |= {"sweep.confirms": f"trial-{spec.number:04d}", "sweep.repeat": str(spec.repeat)}
    elif spec.number is not None:
        tags |= {"optuna.trial": str(spec.number), "optuna.state": "RUNNING"}
    return tags


def end_tags(record: TrialRecord) -> dict[str, str]:
    tags = {"optuna.state": OPTUNA_STATES[record.state]} if record.role == "trial" else {}
    return tags | ({"sweep.reason": record.reason} if record.reason else {})


def _shared_tags(study: StudyRecord) -> dict[str, str]:
    tags = {"sweep.study": study.study, "mlflow.source.name": "lora-sweep", "mlflow.source.type": "LOCAL"}
    if git := study.environment.get("git"):
        tags |= {"sweep.git": str(git), "mlflow.source.git.commit": str(git).split()[0]}
    return tags


def curve_points(row: dict[str, float]) -> list[Point]:
    """A row of `metrics.jsonl` as points of curves by optimizer step."""
    return [(key, row[key], int(row["step"])) for key in CURVES if key in row]


def single_points(record: TrialRecord) -> list[Point]:
    """Numbers known once, the objective first, at step 0 as MLflow has it for a metric without steps.

    Speed is left to its curve: at step 0 it would be a point of that curve.
    """
    metrics = {key: value for key, value in record.metrics.items() if key not in CURVES}
    ordered = sorted(metrics.items(), key=lambda item: item[0] != OBJECTIVE)
    return [(key, value, 0) for key, value in ordered if value is not None and math.isfinite(value)]
