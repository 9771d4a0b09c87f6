"""Engines on the tiny model and a few rows of the demo data; folders of data."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lora_core import adamw, backend
from lora_core.engine import Engine
from lora_core.trial import TrialSpec
from tests.lora_core.data_helpers import CHAT, PAIR, TEXT, make_tokenizer, write
from tests.lora_core.helpers import new_engine, new_spec

backend.configure(memory_fraction=0.75)  # as a worker does

MakeEngine = Callable[..., Engine]
MakeSpec = Callable[..., TrialSpec]


@pytest.fixture(scope="session")
def make_engine() -> MakeEngine:
    """`make_engine(slots)`: see `new_engine`."""
    return new_engine


@pytest.fixture
def make_spec(tmp_path: Path) -> MakeSpec:
    """`make_spec(name, rank=8, …)`: see `new_spec`."""
    return partial(new_spec, tmp_path)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "train.jsonl", TEXT, PAIR, CHAT)
    write(tmp_path / "valid.jsonl", {"prompt": "add 2", "completion": "four"})
    return tmp_path


@pytest.fixture
def even_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW divides by little of a gradient's size. A gradient that is nothing but rounding, which depends on the
    processor, becomes a whole step otherwise."""
    monkeypatch.setattr(adamw, "EPSILON", 1e-3)
