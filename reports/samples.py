"""Sample answers: what base, default settings and winner make of a few rows that no trial was trained on.

<study>/samples.json   {"max_tokens", "wanted", "adapters": {name: sha256}, "rows": [{"prompt", "expected", "answers"}]}
"""

import json
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_core.records import from_dict

FILE = "samples.json"
EMBEDDING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # of writing in one direction in another


@dataclass
class Row:
    """`answers`: by the name of the trial. A text of several lines keeps them."""

    prompt: str
    expected: str
    answers: dict[str, str] = field(default_factory=dict)


@dataclass
class Samples:
    """`max_tokens`: of an answer. `wanted`: how many rows; the data may have fewer. `adapters`: the trials that were
    asked, and the sha256 of what they answered with; null: the base model. `why_not`: why there are none, although
    there is a file."""

    max_tokens: int = 0
    wanted: int = 0
    adapters: dict[str, str | None] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    why_not: str | None = None

    def right(self, name: str) -> int:
        """How many answers of a trial are just as expected."""
        return sum(row.answers.get(name) == row.expected for row in self.rows)


def load(folder: Path) -> Samples:
    """Those of the study in `folder`; none where there is no file."""
    file = folder / FILE
    if not file.exists():
        return Samples()
    try:
        told: dict[str, Any] = json.loads(file.read_text())
        rows = [from_dict(Row, row) for row in told["rows"]]
        return Samples(told["max_tokens"], told["wanted"], told["adapters"], [_visible(row) for row in rows])
    except (OSError, ValueError, KeyError, TypeError):
        return Samples(
            why_not=f"Not shown: {FILE} is damaged or of another version. Resuming the search makes it anew."
        )


def _visible(row: Row) -> Row:
    answers = {name: visible(answer) for name, answer in row.answers.items()}
    return Row(visible(row.prompt), visible(row.expected), answers)


def visible(text: str) -> str:
    """The text with escapes for characters that would command a terminal, a page or the direction of writing."""
    return "".join(char.encode("unicode_escape").decode() if _commands(char) else char for char in text)


def _commands(char: str) -> bool:
    return (unicodedata.category(char) == "Cc" and char not in "\n\t") or unicodedata.bidirectional(char) in EMBEDDING
