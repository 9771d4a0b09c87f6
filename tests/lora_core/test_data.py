"""The whole way from files to rows: fingerprints, and rows that are in two splits."""

from pathlib import Path
from typing import Any

from tests.lora_core.data_helpers import (
    TEXT,
    load,
    write,
)


def test_fingerprint_is_of_content_not_place(folder: Path, tmp_path_factory: Any, tokenizer: Any) -> None:
    other = tmp_path_factory.mktemp("other")
    for name in ("train", "valid"):
        (other / f"{name}.jsonl").write_bytes((folder / f"{name}.jsonl").read_bytes())
    first = load(folder, tokenizer)
    assert len(first.fingerprint) == 16
    assert load(other, tokenizer).fingerprint == first.fingerprint
    assert load(other, tokenizer, mask_prompt=False).fingerprint != first.fingerprint
    assert load(other, tokenizer, length=44).fingerprint != first.fingerprint


def test_scored_rows_that_were_trained_on_are_noted(folder: Path, tokenizer: Any) -> None:
    assert not load(folder, tokenizer).notes
    write(folder / "valid.jsonl", TEXT, {"text": "new"})
    assert load(folder, tokenizer).notes == ["data: 1 of 2 valid rows are also training rows"]
