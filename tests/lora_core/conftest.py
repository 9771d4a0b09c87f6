"""Engines on the tiny model and a few rows of the demo data; folders of data."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_core.config import DataConfig, ModelConfig, TrainConfig, TrainerConfig
from lora_core.data import load_data
from lora_core.engine import Engine
from lora_core.models import load
from lora_core.trial import TrialSpec
from tests.lora_core.data_helpers import CHAT, PAIR, TEXT, make_tokenizer, write

MakeEngine = Callable[..., Engine]
MakeSpec = Callable[..., TrialSpec]


@pytest.fixture
def make_engine() -> MakeEngine:
    """`make_engine(slots)` on the first 12 training and 6 validation rows."""

    def make(slots: int = 1, path: str = "builtin:tiny") -> Engine:
        base = load(path)
        data = load_data(DataConfig(), base.tokenizer, 128, seed=0)
        return Engine(base, replace(data, train=data.train[:12], valid=data.valid[:6]), slots)

    return make


@pytest.fixture
def make_spec(tmp_path: Path) -> MakeSpec:
    """`make_spec(name, rank=8, …)`: a short trial; keywords go to the part of the configuration that has them."""

    def make(name: str, role: str = "trial", repeat: int = 0, **changes: Any) -> TrialSpec:
        config = TrainConfig(model=ModelConfig("builtin:tiny"), num_layers=2)
        config.trainer = TrainerConfig(iters=6, eval_every=3, max_seq_length=128)
        config.optimizer.learning_rate = 1e-2
        for key, value in changes.items():
            setattr(_owner(config, key), key, value)
        return TrialSpec(name, role, config.to_dict(), str(tmp_path / name), repeat=repeat)

    return make


def _owner(config: TrainConfig, key: str) -> Any:
    parts = (config, config.lora_parameters, config.optimizer, config.trainer)
    return next(part for part in parts if hasattr(part, key))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "train.jsonl", TEXT, PAIR, CHAT)
    write(tmp_path / "valid.jsonl", {"prompt": "add 2", "completion": "four"})
    return tmp_path
