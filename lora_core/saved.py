"""What an engine makes of a saved adapter: the merged model, its loss, its answers."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from lora_core.adapter_folder import read
from lora_core.answers import continuations
from lora_core.config import LoraParameters, TrainConfig
from lora_core.engine import Engine
from lora_core.learned import Learned
from lora_core.models import quantised
from lora_core.models.loading import load_folder
from lora_core.resume import Start
from lora_core.samples import ANSWER_TOKENS, Answer, spread
from lora_core.trial import TrialSpec


def fuse(engine: Engine, adapter_folder: Path, config: TrainConfig, folder: Path) -> float:
    """Merges it into the base model and writes that to `folder`; returns the error of `lora_core.fuse`."""
    return engine.learned(config).fuse(_loaded(engine, adapter_folder, config), config, folder)


def requantise(engine: Engine, folder: Path, quantization: str, config: TrainConfig) -> tuple[float, float]:
    """Puts the merged model in `folder` in fewer bits. Returns by which share of its size that has changed its
    weights, and its validation loss."""
    error = quantised.requantise(folder, quantization)
    merged = Engine(load_folder(folder, str(folder)), engine.data, 1)
    plain = replace(config, train_type="lora", num_layers=1, lora_parameters=LoraParameters())
    return error, score(merged, plain, None, "valid")


def score(engine: Engine, config: TrainConfig, adapter_folder: Path | None, split: str = "test") -> float:
    """Mean loss over all counted tokens of the test set, or another, with an adapter of this configuration or, where
    there is none, of the base model. Raises UserError if the adapter cannot be loaded."""
    learned = None if adapter_folder is None else Start(_loaded(engine, adapter_folder, config))
    slot, pack, feed = engine.place(TrialSpec("score", "base", config.to_dict(), ""), config)
    pack.add(slot, learned.state if learned else None)
    try:
        return engine.mean_losses([slot], pack, feed, split)[0]
    finally:
        pack.remove(slot)


def answers(engine: Engine, config: TrainConfig, adapter_folder: Path | None, rows: int) -> list[Answer]:
    """Answers to the first samples of the data, with an adapter of this configuration or, where there is none, of the
    base model. Raises UserError if the adapter cannot be loaded."""
    samples = spread(engine.data.samples, rows)
    learned = None if adapter_folder is None else _loaded(engine, adapter_folder, config)
    with nullcontext() if learned is None else engine.learned(config).carried(learned, config):
        found = continuations(engine.base, [sample.tokens for sample in samples], ANSWER_TOKENS)
    return [Answer(s.prompt, s.expected, text.strip()) for s, text in zip(samples, found, strict=True)]


def _loaded(engine: Engine, adapter_folder: Path, config: TrainConfig) -> Learned:
    return engine.learned(config).load(read(str(adapter_folder)), config)
