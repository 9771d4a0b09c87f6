"""Training data: from `data.path` to rows of tokens that say which tokens count in the loss."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from lora_core.config import DataConfig
from lora_core.data_sources import SPLITS, read_data
from lora_core.data_tokens import Row, Tokeniser
from lora_core.samples import Sample, samples


@dataclass
class Dataset:
    """Tokenised splits. `fingerprint`: 16 hex digits of the tokens and of what counts, wherever the data
    lies. `notes`: one line each, of what was split, cut or left out. `samples`: rows to show answers to."""

    path: str
    train: list[Row]
    valid: list[Row]
    test: list[Row] | None
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


def load_data(config: DataConfig, tokenizer: Any, max_seq_length: int, seed: int) -> Dataset:
    """Reads, checks, splits and tokenises `config.path`.

    `tokenizer` is mlx_lm's TokenizerWrapper; rows longer than `max_seq_length` tokens are cut; `seed` (0 or
    more) decides which rows of a single file are for validation. Raises UserError for whatever is wrong with
    the data.
    """
    splits, notes = read_data(config, seed)
    tokeniser = Tokeniser(tokenizer, config.mask_prompt is not False, max_seq_length)
    rows = {name: tokeniser.rows(examples) for name, examples in splits.items()}
    notes += tokeniser.notes() + _overlaps(rows)
    fingerprint, asked = _fingerprint(rows), samples(splits, tokenizer)
    return Dataset(config.path, rows["train"], rows["valid"], rows.get("test"), fingerprint, notes, asked)


def _overlaps(rows: dict[str, list[Row]]) -> list[str]:
    """Notes on rows that are scored and were also trained on: their loss flatters."""
    trained = {row.tokens.tobytes() for row in rows["train"]}
    notes = []
    for name in rows.keys() - {"train"}:
        both = sum(row.tokens.tobytes() in trained for row in rows[name])
        if both:
            notes.append(f"data: {both} of {len(rows[name])} {name} rows are also training rows")
    return sorted(notes)


def _fingerprint(rows: dict[str, list[Row]]) -> str:
    digest = hashlib.sha256()
    for name in SPLITS:
        digest.update(f"{name} {len(rows.get(name, []))}\n".encode())
        for row in rows.get(name, []):
            digest.update(f"{len(row)}\n".encode())
            digest.update(row.tokens.astype("<i4").tobytes() + row.counts.tobytes())
    return digest.hexdigest()[:16]
