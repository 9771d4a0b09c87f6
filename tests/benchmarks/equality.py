"""How far trials that were trained in one pack end from the same trials, each trained alone.

    python -m tests.benchmarks.equality --model 135m --tokenizer TOKENIZER --data my_data

The trials have several ranks, rates and depths, and every other one has dropout. On a CPU with MKL nothing may differ.
On a GPU a product of matrices is summed in another order where its shape is another, and rounded to the base's dtype.
"""

import argparse
import sys
import tempfile
from itertools import product
from pathlib import Path

from tests.benchmarks.engine import Bench, options_of, train_all  # isort: skip  (loads a BLAS, which must be there before mlx)
import mlx.core as mx
import numpy as np

from lora_core import adapters, backend
from lora_core.engine import Engine
from lora_core.records import load_metrics
from lora_core.trial import TrialSpec

Ended = tuple[list[float], dict[str, np.ndarray]]  # losses of the validation set, adapter by tensor


def trained(bench: Bench, train_type: str, dtype: str, slots: int) -> list[Ended]:
    """Every trial of the benchmark, so many at a time."""
    adapters.remove(bench.base.model.layers)
    engine, specs = Engine(bench.base, bench.data, slots), []
    for index in range(bench.options.trials):
        config = bench.config(index, bench.options.steps, dtype)
        config.train_type, config.trainer.eval_every = train_type, max(1, bench.options.steps // 4)
        config.lora_parameters.dropout = 0.1 * (index % 2)
        folder = bench.folder / train_type / dtype / str(slots) / str(index)
        specs.append(TrialSpec(str(index), "trial", config.to_dict(), str(folder)))
    train_all(engine, specs)
    return [_ended(Path(spec.folder)) for spec in specs]


def _ended(folder: Path) -> Ended:
    tensors = mx.load(str(folder / "adapters" / "adapters.safetensors"))
    return [row["val_loss"] for row in load_metrics(folder)], {name: np.array(w) for name, w in tensors.items()}


def differences(alone: list[Ended], packed: list[Ended]) -> tuple[float, float, float]:
    """The largest of a loss, relative, and the median and the largest of a tensor: the mean square of what differs by
    that of its numbers."""
    losses, tensors = [], []
    for (one, first), (other, second) in zip(alone, packed, strict=True):
        losses += [abs(b - a) / a for a, b in zip(one, other, strict=True)]
        tensors += [_rms(second[name] - w) / (_rms(w) or 1.0) for name, w in first.items()]
    return max(losses), float(np.median(tensors)), max(tensors)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def main() -> None:
    options: argparse.Namespace = options_of(["--mixed", "--steps", "40", *sys.argv[1:]])
    backend.configure(0.75)  # as a worker does
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        print(f"{backend.device_name()}: {options.trials} trials, {options.steps} steps, packed against alone")
        for train_type, dtype in product(("lora", "dora"), ("float32", "base")):
            alone, packed = (trained(bench, train_type, dtype, slots) for slots in (1, options.trials))
            loss, median, most = differences(alone, packed)
            print(f"  {train_type}, {dtype:8} losses differ by {loss:.1e} at most,", end=" ")
            print(f"tensors by {median:.1e} in the median, {most:.1e} at most")


if __name__ == "__main__":
    main()
