"""What a study leaves on disk, the source of truth: `study.json`, and `trial.json` + `metrics.jsonl` per trial.

    <output_dir>/<study>/study.json
    <output_dir>/<study>/base/        trial.json, metrics.jsonl             (role base: no training, step 0)
    <output_dir>/<study>/default/     trial.json, metrics.jsonl, adapters/  (role default)
    <output_dir>/<study>/trial-0007/  trial.json, metrics.jsonl, adapters/  (role trial)
    <output_dir>/<study>/confirm-0007-1/  the same of its first repeat      (role confirm)
    <output_dir>/<study>/samples.json     what some of them answer to a few prompts; see reports.samples

A row of `metrics.jsonl` is one evaluation: `step`, `val_loss`, and after step 0 `train_loss` (mean since the last
row), `learning_rate`, `tokens_per_second`, `seconds` (training seconds so far). Losses are nats per token. JSON has no
NaN and no infinity: such a number, as in the last row of a trial that diverged, is null.
"""

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_core.errors import UserError

SCHEMA = 1
CHECKPOINT = "slot.json"  # of a running trial; see lora_core.checkpoint
ADAPTER = "adapters.safetensors"  # in a trial's adapter folder


@dataclass
class TrialRecord:
    """One trial. `metrics` holds numbers known once (`best_val_loss`, `final_val_loss`, `val_perplexity`,
    `tokens_per_second`, `peak_memory_gb`, `trainable_params`, `adapter_mb`, `train_seconds`, `scale_ratio`,
    `multiplier`, `test_loss` where the test set was scored, and `resume_error` where a smaller rank than that of
    `resume_adapter_file` has cost a share of ΔW); `reason` says why a trial is pruned or failed
    (`diverged`, `out of memory`, …)."""

    name: str  # the folder: trial-0007, base, default, confirm-0007-1
    role: str  # trial, base, default, confirm or train
    state: str = "running"  # or complete, pruned, failed
    number: int | None = None  # Optuna's, for role trial; for role confirm that of the trial it repeats
    repeat: int = 0
    reason: str | None = None
    params: dict[str, Any] = field(default_factory=dict)  # searched key → value
    config: dict[str, Any] = field(default_factory=dict)  # TrainConfig.to_dict()
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0  # optimizer steps done
    planned_steps: int = 0
    best_step: int | None = None
    started: str | None = None  # ISO 8601, UTC
    ended: str | None = None
    adapter: str | None = None  # folder, absolute; in the file relative to it, where it lies beside
    adapter_sha256: str | None = None
    schema: int = SCHEMA

    @property
    def value(self) -> float | None:
        """The objective: `best_val_loss`, or None while there is none."""
        return self.metrics.get("best_val_loss")


@dataclass
class StudyRecord:
    """One study, or one `train` run (`kind` train: a single trial named after the run)."""

    study: str
    kind: str = "search"
    state: str = "running"  # running, complete, interrupted
    created: str = ""
    ended: str | None = None
    command: str = ""  # as typed
    resume_command: str = ""
    n_trials: int = 0
    seed: int = 0
    space: list[str] = field(default_factory=list)  # axes as Hydra override strings
    axes: list[dict[str, Any]] = field(default_factory=list)  # see sweeps.space.Axis.to_dict
    sampler: str = ""
    pruner: str = ""
    objective: str = "best_val_loss"
    direction: str = "minimize"
    storage: str = ""
    fingerprint: str = ""
    config: dict[str, Any] = field(default_factory=dict)  # whole resolved configuration
    model: dict[str, Any] = field(default_factory=dict)  # ModelInfo
    data: dict[str, Any] = field(default_factory=dict)  # DataInfo
    starts: dict[str, str] = field(default_factory=dict)  # path of an adapter that trials start from → its digest
    environment: dict[str, Any] = field(default_factory=dict)  # versions, device, platform, git
    notes: list[str] = field(default_factory=list)  # what was capped, split, dequantised, …
    tracking: dict[str, Any] = field(default_factory=dict)  # uri, experiment, experiment_id, run_id, link
    runs: dict[str, str] = field(default_factory=dict)  # trial name → MLflow run id
    schema: int = SCHEMA


@dataclass
class ModelInfo:
    """The base model, as the worker found it. `folder` is what `mlx_lm --model` takes."""

    path: str
    folder: str
    kind: str  # model_type of its config.json
    depth: int
    linear_keys: list[str]  # block-relative names of the layers an adapter can sit on
    parameters: int
    dtype: str
    fingerprint: str
    bits: int | None = None  # of a quantised model, also where it is trained dequantised


@dataclass
class DataInfo:
    """The data, as the worker tokenised it. `rows` and `tokens` (those in the loss) by split."""

    path: str
    fingerprint: str
    rows: dict[str, int]
    tokens: dict[str, int]
    lengths: list[int]  # padded lengths in use
    batches: int  # training batches of one epoch


def remove_checkpoint(folder: Path, keep: str | None = None) -> None:
    """Removes what a trial would go on from: all of it, or all arrays but those in the file named `keep`."""
    if keep is None:
        (folder / CHECKPOINT).unlink(missing_ok=True)
    for file in folder.glob("slot-*.safetensors"):
        if file.name != keep:
            file.unlink(missing_ok=True)


def saved_step(folder: Path) -> int:
    """The step from which a trial that is run again goes on; 0: it begins anew."""
    try:
        return int(json.loads((folder / CHECKPOINT).read_text())["host"]["step"])
    except (OSError, ValueError, KeyError):  # there is none, or it is damaged
        return 0


def adapter_damage(trial: TrialRecord, folder: Path) -> str | None:
    """What is wrong with the adapter in `folder`, which the trial has saved; None if it is as it was."""
    try:
        with (folder / ADAPTER).open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == trial.adapter_sha256
    except OSError as error:
        return f"{folder / ADAPTER} cannot be read ({error.strerror})"
    return None if same else f"{folder / ADAPTER} has changed since it was written"


def now() -> str:
    """The time as records hold it: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """A record of class `cls` from `values`; keys of a newer schema are ignored."""
    known = {f.name for f in fields(cls)}
    return cls(**{name: value for name, value in values.items() if name in known})


def write_json(path: Path, values: Any) -> None:
    """Writes beside, syncs, renames: a reader sees the old file or the new one, never a part."""
    write_file(path, (json.dumps(_finite(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _finite(values: Any) -> Any:
    """The same with null for every number that JSON lacks."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def write_file(path: Path, content: bytes) -> None:
    """Like `write_json`, for any bytes."""
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def save_trial(folder: Path, record: TrialRecord) -> None:
    """Writes `trial.json`, which names an adapter in `folder` as what lies there: a copy of the folder has its own."""
    written = asdict(record)
    if record.adapter is not None and Path(record.adapter).is_relative_to(folder.absolute()):
        written["adapter"] = str(Path(record.adapter).relative_to(folder.absolute()))
    write_json(folder / "trial.json", written)


def save_study(folder: Path, record: StudyRecord) -> None:
    write_json(folder / "study.json", asdict(record))


def load_trial(folder: Path) -> TrialRecord:
    record: TrialRecord = from_dict(TrialRecord, _read(folder / "trial.json"))
    if record.adapter is not None:
        record.adapter = str(folder.absolute() / record.adapter)
    return record


def load_study(folder: Path) -> StudyRecord:
    return from_dict(StudyRecord, _read(folder / "study.json"))


def load_trials(study_folder: Path) -> list[TrialRecord]:
    """Every trial of the study: base, default, then by number."""
    records = [load_trial(path.parent) for path in study_folder.glob("*/trial.json")]
    order = {"base": 0, "default": 1}
    return sorted(records, key=lambda r: (order.get(r.role, 2), r.number or 0, r.repeat, r.name))


def append_metrics(folder: Path, row: dict[str, Any]) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(_metrics_line(row))


def write_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Replaces all rows of `metrics.jsonl`."""
    write_file(folder / "metrics.jsonl", "".join(map(_metrics_line, rows)).encode())


def _metrics_line(row: dict[str, Any]) -> str:
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def load_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` by step, NaN where they have null; a torn last line (power loss) is left out. A row
    that is there twice was written by two machines that took the trial for theirs for a moment."""
    path = folder / "metrics.jsonl"
    rows: dict[float, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = {key: math.nan if value is None else value for key, value in json.loads(line).items()}
        except json.JSONDecodeError:
            break
        rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: no such study or trial.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg}).") from None
