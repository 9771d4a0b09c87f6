"""A recorded study of ten trials with numbers chosen so that every result can be checked by hand."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_core.config import TrainConfig
from lora_core.records import StudyRecord, TrialRecord, append_metrics, load_trial, save_study, save_trial

RANK, RATIO, RATE = "lora_parameters.rank", "lora_parameters.scale_ratio", "optimizer.learning_rate"
AXES = [
    {"key": RANK, "kind": "categorical", "choices": [4, 8, 16, 32]},
    {"key": RATIO, "kind": "float", "low": 0.5, "high": 8.0, "log": True},
    {"key": RATE, "kind": "float", "low": 1e-5, "high": 1e-3, "log": True},
]
# rank, α/r, learning rate, loss, state, reason
TRIALS = [
    (8, 2.0, 1e-4, 2.25, "complete", None),
    (16, 4.0, 3e-4, 2.0, "complete", None),
    (4, 1.0, 2e-5, 2.5, "pruned", "behind the median at step 20"),
    (32, 2.0, 5e-4, 1.75, "complete", None),
    (32, 8.0, 1e-3, None, "failed", "diverged"),
    (16, 2.0, 4e-4, 1.875, "complete", None),
    (8, 4.0, 2e-4, 2.125, "complete", None),
    (4, 2.0, 6e-4, 2.0625, "complete", None),
    (32, 2.0, 3e-4, 1.8125, "complete", None),
    (16, 0.5, 8e-4, 1.9375, "complete", None),
]
BASE, DEFAULT = 3.5, 2.1875
STEPS = 40


def train_config(params: dict[str, Any]) -> dict[str, Any]:
    config = TrainConfig().to_dict()
    for key, value in params.items():
        group, name = key.split(".")
        config[group][name] = value
    return config


def write_trial(folder: Path, record: TrialRecord) -> None:
    """Saves `record` with a learning curve that falls from BASE to its loss."""
    record.config = record.config or train_config(record.params)
    record.planned_steps = 0 if record.role == "base" else STEPS
    (folder / record.name).mkdir(parents=True)
    save_trial(folder / record.name, record)
    append_metrics(folder / record.name, {"step": 0, "val_loss": BASE})
    for step in range(10, record.step + 1, 10):
        loss = record.metrics.get("best_val_loss", 4.0)
        row = {"step": step, "val_loss": loss + (BASE - loss) * 0.5 ** (step / 5), "seconds": step / 2}
        append_metrics(folder / record.name, row | {"train_loss": loss, "tokens_per_second": 812.5})


def finished(name: str, role: str, loss: float | None, **more: Any) -> TrialRecord:
    metrics = {} if loss is None else {"best_val_loss": loss, "final_val_loss": loss + 0.0625}
    if role != "base":
        metrics |= {"trainable_params": 460_800, "train_seconds": 20.0, "tokens_per_second": 812.5}
    return TrialRecord(name, role, **({"state": "complete", "metrics": metrics} | more))


def search_trial(folder: Path, number: int, row: tuple[Any, ...]) -> TrialRecord:
    rank, ratio, rate, loss, state, reason = row
    name = f"trial-{number:04d}"
    record = finished(name, "trial", loss, number=number, state=state, reason=reason, step=STEPS)
    record.params = {RANK: rank, RATIO: ratio, RATE: rate}
    record.metrics["scale_ratio"] = ratio
    record.step = {"pruned": 20, "failed": 10}.get(state, STEPS)
    if state == "complete":
        record.adapter = str(folder / name / "adapters")
    return record


def write_repeat(folder: Path, number: int, repeat: int, loss: float | None, state: str = "complete") -> None:
    """A trial trained again with another seed."""
    name = f"confirm-{number:04d}-{repeat}"
    record = finished(name, "confirm", loss, number=number, repeat=repeat, state=state, step=STEPS)
    record.params = load_trial(folder / f"trial-{number:04d}").params
    write_trial(folder, record)


def study_record(name: str, **more: Any) -> StudyRecord:
    values: dict[str, Any] = {
        "state": "complete", "created": "2025-01-02T03:04:05Z", "n_trials": 10, "axes": AXES,
        "command": f"lora-sweep search study={name}", "sampler": "TPESampler", "pruner": "MedianPruner",
        "resume_command": f"lora-sweep search study={name} n_trials=10", "fingerprint": "0123abcd",
        "space": [f"{RANK}=4,8,16,32", f"{RATIO}=tag(log,interval(0.5,8))"],
        "model": {"path": "builtin:tiny", "folder": "/models/tiny model", "kind": "llama", "depth": 4},
        "data": {"path": "builtin:demo", "rows": {"train": 200, "valid": 40}, "tokens": {"train": 9000}},
        "environment": {"device": "cpu", "versions": {"mlx": "0.32.4", "optuna": "5.0.0"}},
        "notes": ["num_layers 16 capped to 4"],
    }  # fmt: skip
    return StudyRecord(name, **(values | more))


def write_study(
    output_dir: Path, name: str = "demo", trials: Any = TRIALS, default: float | None = DEFAULT, **more: Any
) -> Path:
    """A study folder like those a search leaves; `more` are fields of its StudyRecord."""
    folder = output_dir / name
    folder.mkdir(parents=True)
    save_study(folder, study_record(name, **more))
    write_trial(folder, finished("base", "base", BASE))
    if default is not None:
        write_trial(folder, finished("default", "default", default, step=STEPS))
    for number, row in enumerate(trials):
        write_trial(folder, search_trial(folder, number, row))
    return folder


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """As by a process at work."""
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield
    os.close(handle)
