"""What data.path may mean, and what is said of paths that mean nothing."""

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from lora_core.config import DataConfig
from lora_core.data_sources import read_data
from tests.lora_core.data_helpers import (
    complaint,
    load,
    write,
)


def test_folder_with_and_without_test(folder: Path, tokenizer: Any) -> None:
    data = load(folder, tokenizer)
    assert (len(data.train), len(data.valid), data.test) == (3, 1, None)
    write(folder / "test.jsonl", {"text": "unseen"})
    assert len(load(folder, tokenizer).test or []) == 1


def test_one_file_is_split_by_seed(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "all.jsonl"
    write(path, *({"text": f"row {i}"} for i in range(50)))
    data = load(path, tokenizer, valid_fraction=0.2)
    texts = [[tokenizer.decode(row.tokens.tolist()) for row in rows] for rows in (data.train, data.valid)]
    assert (len(texts[0]), len(texts[1])) == (40, 10)
    assert len({*texts[0], *texts[1]}) == 50
    assert "40 for training and 10 for validation" in data.notes[0]
    assert load(path, tokenizer, valid_fraction=0.2).fingerprint == data.fingerprint
    assert load(path, tokenizer, valid_fraction=0.2, seed=1).fingerprint != data.fingerprint


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_a_split_leaves_no_side_empty(tmp_path: Path, tokenizer: Any, fraction: float) -> None:
    write(tmp_path / "all.jsonl", {"text": "one"}, {"text": "two"})
    data = load(tmp_path / "all.jsonl", tokenizer, valid_fraction=fraction)
    assert len(data.train) == len(data.valid) == 1
    write(tmp_path / "all.jsonl", {"text": "one"})
    assert "cannot be split" in complaint(tmp_path / "all.jsonl", tokenizer)


def test_a_hub_id_without_its_package(tmp_path: Path, tokenizer: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "datasets" else found(name))
    assert "pip install datasets" in complaint("someone/some-data", tokenizer)


def test_a_hub_that_is_out_of_reach(tmp_path: Path, tokenizer: Any, monkeypatch: Any) -> None:
    """Fails cleanly, without waiting, and before the package `datasets` is so much as imported."""
    hub = pytest.importorskip("huggingface_hub")

    def refuse(*_: Any, **options: Any) -> None:
        assert options["timeout"] <= 10
        raise socket.gaierror("Name or service not known")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(hub.HfApi, "dataset_info", refuse)
    assert "Name or service not known" in complaint("someone/some-data", tokenizer)


def test_reading_needs_no_tokenizer(folder: Path) -> None:
    splits, notes = read_data(DataConfig(path=str(folder)), seed=0)
    assert [len(splits[name]) for name in ("train", "valid")] == [3, 1] and not notes


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_empty_files(folder: Path, tokenizer: Any, content: str) -> None:
    (folder / "valid.jsonl").write_text(content)
    assert "valid.jsonl is empty" in complaint(folder, tokenizer)


def test_missing_splits(folder: Path, tokenizer: Any) -> None:
    (folder / "valid.jsonl").rename(folder / "valid.json.jsonl")
    message = complaint(folder, tokenizer)
    assert "has no valid.jsonl" in message and f"data.path={folder}/train.jsonl" in message
    (folder / "train.jsonl").unlink()
    assert "has no train.jsonl" in complaint(folder, tokenizer)


def test_paths_that_do_not_exist(folder: Path, tokenizer: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder)
    assert "Did you mean train.jsonl" in complaint(folder / "trian.jsonl", tokenizer)
    for path in (
        "./nothing/here",
        "~/no/such/data",
        "nothing",
        "/no/such",
        "a b/c",
        "no-such-owner/train.jsonl",
    ):
        assert "no such file or folder" in complaint(path, tokenizer)
    assert "cannot be read" in complaint("x" * 5000, tokenizer)
    assert "expected builtin:demo" in complaint("builtin:dmeo", tokenizer)


def test_files_of_another_kind(folder: Path, tokenizer: Any) -> None:
    (folder / "rows.csv").write_text("prompt,completion\n")
    assert "neither a folder nor a .jsonl" in complaint(folder / "rows.csv", tokenizer)
