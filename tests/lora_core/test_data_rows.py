"""Rows that cannot be used are named by file and line."""

from pathlib import Path
from typing import Any

import pytest

from tests.lora_core.data_helpers import (
    complaint,
    complaint_about,
    load,
)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"text": "open', "not valid JSON"),
        ("{'text': 'single'}", "column 2"),
        ("[1, 2]", "found a list"),
        ("7", "found the number 7"),
        ("[" * 100_000, "not a JSON row"),
        ("{}", "found no keys"),
        ({"txt": "a"}, "Did you mean text?"),
        ({"prompt": "a", "complete": "b"}, "Did you mean completion?"),
        ({"question": "a"}, "'question'"),
        ({"text": 3}, "text is the number 3, expected a string"),
        ({"prompt": "a", "completion": ["b"]}, "completion is a list"),
        ({"text": "\ud800"}, "'\\ud800'"),
        ({"messages": "hi"}, "list of objects"),
        ({"messages": []}, "no messages"),
        ({"messages": ["hi"]}, "list of objects"),
        ({"messages": [{"content": "a"}]}, "messages[0] has no role"),
        ({"messages": [{"role": "user", "contents": "a"}]}, "Did you mean contents?"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content is the number 1"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no assistant turn"),
    ],
)
def test_rows_that_cannot_be_used(row: Any, said: str, folder: Path, tokenizer: Any) -> None:
    assert said in complaint_about(row, folder, tokenizer)


def test_bytes_that_are_no_text(folder: Path, tokenizer: Any) -> None:
    (folder / "train.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    assert f"{folder}/train.jsonl:2: not UTF-8" in complaint(folder, tokenizer)


def test_what_other_editors_write_is_fine(folder: Path, tokenizer: Any) -> None:
    """A byte order mark, Windows line ends, blank lines, a line separator inside a string."""
    text = '\ufeff{"text": "a"}\r\n\r\n{"text": "b\u2028c"}\r\n\n'
    (folder / "train.jsonl").write_bytes(text.encode())
    assert len(load(folder, tokenizer).train) == 2
