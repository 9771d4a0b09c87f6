"""Runs trials in an engine and reads what they left."""

from pathlib import Path

import mlx.core as mx
import numpy as np

from lora_core.engine import Engine
from lora_core.records import TrialRecord, load_metrics, load_trial
from lora_core.trial import TrialSpec


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
