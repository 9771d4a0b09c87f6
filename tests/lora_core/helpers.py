"""Makes engines and trials, runs trials and reads what they left."""

import platform
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lora_core import backend
from lora_core.config import DataConfig, ModelConfig, TrainConfig, TrainerConfig
from lora_core.data import Dataset, load_data
from lora_core.engine import Engine
from lora_core.models import load
from lora_core.records import TrialRecord, load_metrics, load_trial
from lora_core.trial import TrialSpec

bits_are_promised = pytest.mark.skipif(
    platform.system() != "Linux" or "MKL" not in "".join(backend.prepare()),
    reason="bits are promised with MKL on Linux only",
)


def new_engine(slots: int = 1, path: str = "builtin:tiny", train: int = 12, valid: int = 6) -> Engine:
    """An engine on the first `train` and `valid` rows of the demo data."""
    data = demo()
    return Engine(load(path), replace(data, train=data.train[:train], valid=data.valid[:valid]), slots)


@cache
def demo() -> Dataset:
    """The demo data as the byte tokenizer of the tiny model has it."""
    return load_data(DataConfig(), load("builtin:tiny").tokenizer, 128, seed=0)


def new_spec(folder: Path, name: str, role: str = "trial", repeat: int = 0, **changes: Any) -> TrialSpec:
    """A short trial in `folder`; keywords go to the part of the configuration that has them."""
    config = TrainConfig(model=ModelConfig("builtin:tiny"), num_layers=2)
    config.trainer = TrainerConfig(iters=6, eval_every=3, max_seq_length=128)
    config.optimizer.learning_rate = 1e-2
    for key, value in changes.items():
        setattr(_owner(config, key), key, value)
    return TrialSpec(name, role, config.to_dict(), str(folder / name), repeat=repeat)


def _owner(config: TrainConfig, key: str) -> Any:
    parts = (config, config.lora_parameters, config.optimizer, config.trainer)
    return next(part for part in parts if hasattr(part, key))


def run(engine: Engine, *specs: TrialSpec) -> list[TrialRecord]:
    """Runs the trials to their ends, each as soon as a slot is free; records in the order given."""
    waiting = list(specs)
    while waiting or engine.running:
        while waiting and engine.free:
            engine.start(waiting.pop(0))
        if engine.running:
            engine.advance()
    return [load_trial(Path(spec.folder)) for spec in specs]


def weights(spec: TrialSpec) -> dict[str, np.ndarray]:
    """The saved adapter."""
    loaded = mx.load(str(Path(spec.folder) / "adapters" / "adapters.safetensors"))
    return {name: np.array(value) for name, value in loaded.items()}


def losses(spec: TrialSpec) -> list[tuple[int, float, float | None]]:
    """(step, validation loss, training loss) of every evaluation."""
    return [(r["step"], r["val_loss"], r.get("train_loss")) for r in load_metrics(Path(spec.folder))]


def same_result(first: TrialSpec, second: TrialSpec) -> bool:
    """Whether two trials ended in the same losses and adapters, to the bit."""
    a, b = weights(first), weights(second)
    equal = a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
    return equal and losses(first) == losses(second)
