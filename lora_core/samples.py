"""A few rows that no trial was trained on, for a reader to see what a model answers to them."""

from dataclasses import dataclass
from typing import Any

from lora_core.data_rows import Example, Examples
from lora_core.data_tokens import Tokeniser, common, messages_of

AMONG = 50  # rows that may be taken
LONGEST_PROMPT = 256  # tokens; on a CPU a longer one takes seconds
OPENING = 64  # tokens of a text of one line, or half of it
ANSWER_TOKENS = 48


@dataclass(frozen=True)
class Sample:
    """`prompt` and what is expected to follow it, as one reads them; `tokens`: the prompt as a model gets it."""

    prompt: str
    expected: str
    tokens: list[int]


@dataclass
class Answer:
    """What a model made of a sample."""

    prompt: str
    expected: str
    answer: str


def samples(splits: Examples, tokenizer: Any) -> list[Sample]:
    """Short ones with different prompts of the first rows of the test set or, where there is none, of the validation
    rows."""
    found: dict[str, Sample] = {}
    for example in (splits.get("test") or splits["valid"])[:AMONG]:
        sample = _sample(example, tokenizer)
        if sample.prompt and 0 < len(sample.tokens) <= LONGEST_PROMPT:
            found.setdefault(sample.prompt, sample)
    return list(found.values())


def spread(found: list[Sample], count: int) -> list[Sample]:
    """As many of them, evenly chosen: those that lie together in a file are often alike."""
    return [found[place * len(found) // count] for place in range(count)] if count < len(found) else found


def _sample(example: Example, tokenizer: Any) -> Sample:
    tokens, start = Tokeniser(tokenizer, True, LONGEST_PROMPT).tokens(example)
    is_text = example.kind == ("text",)
    start = _opening(example.values["text"], tokens, tokenizer) if is_text else start
    prompt = _text(tokens[:start], tokenizer) if is_text else _question(example)
    return Sample(prompt, _text(tokens[start:][:ANSWER_TOKENS], tokenizer), tokens[:start])


def _opening(text: str, tokens: list[int], tokenizer: Any) -> int:
    """How many tokens of a text are given: all before its last line, or the first where that cannot be."""
    before, newline, _ = text.rstrip().rpartition("\n")
    given = common(tokenizer.encode(before + newline), tokens) if before.strip() else 0
    return given if 0 < given <= LONGEST_PROMPT else min(OPENING, len(tokens) // 2)


def _text(tokens: list[int], tokenizer: Any) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()


def _question(example: Example) -> str:
    """What was said last before the answer."""
    messages = messages_of(example)
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return (messages[last - 1]["content"] or "").strip() if last else ""
