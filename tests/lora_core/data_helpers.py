"""Data folders, a byte-level tokenizer so that every letter is one token, and the complaints about them."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_core.config import DataConfig
from lora_core.data import Dataset, Row, load_data
from lora_core.errors import UserError

TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ':' + (m['content'] or '') + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
)
TEXT = {"text": "hello"}
PAIR = {"prompt": "add 1", "completion": "two"}
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c?"},
        {"role": "assistant", "content": "dd"},
    ]
}


def make_tokenizer(template: str | None = TEMPLATE) -> Any:
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return TokenizerWrapper(tokenizer)


def write(path: Path, *rows: Any) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def load(path: Path | str, tokenizer: Any, length: int = 512, seed: int = 0, **options: Any) -> Dataset:
    return load_data(DataConfig(path=str(path), **options), tokenizer, length, seed)


def load_rows(folder: Path, tokenizer: Any, *rows: Any, **options: Any) -> list[Row]:
    write(folder / "train.jsonl", *rows)
    return load(folder, tokenizer, **options).train


def complaint(path: Path | str, tokenizer: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(path, tokenizer, **options)
    message = str(caught.value)
    assert 1 <= len(message.splitlines()) <= 3
    return message


def complaint_about(row: Any, folder: Path, tokenizer: Any, **options: Any) -> str:
    """The message for a folder whose second training row is `row`; it must say where."""
    write(folder / "train.jsonl", PAIR, row)
    message = complaint(folder, tokenizer, **options)
    assert message.startswith(f"{folder}/train.jsonl:2: ")
    return message


def counted(row: Row, tokenizer: Any) -> str:
    return tokenizer.decode(row.tokens[row.counts].tolist())
