"""From a row as read to tokens that say which of them count in the loss.

Rows become tokens as in mlx_lm's datasets, so a prompt given to `mlx_lm.generate` starts with the very tokens the
adapter was trained on. The loss covers the completion, the last assistant turn or the whole text.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError

from lora_core.data_rows import Example
from lora_core.errors import UserError


@dataclass(frozen=True, eq=False)
class Row:
    """One tokenised row. `tokens`: int32 [n]. `counts`: bool [n], True where the token is to be predicted:
    never the first, and at least one other."""

    tokens: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


class Tokeniser:
    """Turns examples into rows and keeps count of what it had to cut or leave out."""

    def __init__(self, tokenizer: Any, mask: bool, max_length: int) -> None:
        self.tokenizer, self.mask, self.max_length = tokenizer, mask, max_length
        self.longest = 0
        self.cut: list[str] = []
        self.left_out: list[str] = []
        self.untemplated = 0

    def rows(self, examples: list[Example]) -> list[Row]:
        rows = [row for example in examples if (row := self._row(example)) is not None]
        if not rows:
            where = examples[0].where
            raise UserError(f"{where}: no row of this split has anything to learn from.")
        return rows

    def _row(self, example: Example) -> Row | None:
        tokens, start = self.tokens(example)
        counts = np.arange(len(tokens)) >= max(start, 1)
        if len(tokens) > self.max_length and counts.any():
            self._note_cut(example, len(tokens), max(start, 1))
        row = Row(np.array(tokens[: self.max_length], dtype=np.int32), counts[: self.max_length])
        if not row.counts.any():
            self.left_out.append(example.where)
            return None
        return row

    def _note_cut(self, example: Example, length: int, start: int) -> None:
        if start >= self.max_length:
            raise UserError(
                f"{example.where}: the row has {length} tokens, and its first {self.max_length} "
                f"(trainer.max_seq_length) are all prompt:\nnothing is left to learn from. Expected "
                f"trainer.max_seq_length={length} (at least {start + 1}), or a shorter row."
            )
        self.cut.append(example.where)
        self.longest = max(self.longest, length)

    def tokens(self, example: Example) -> tuple[list[int], int]:
        """All tokens of the row, and how many of them are prompt: none where that counts in the loss too."""
        if example.kind == ("text",):
            return self._with_end(self.tokenizer.encode(example.values["text"])), 0
        if self.tokenizer.has_chat_template:
            return self._chat(example)
        return self._plain(example)

    def _chat(self, example: Example) -> tuple[list[int], int]:
        messages, tools = messages_of(example), example.values.get("tools")
        if not self.mask:
            return self._templated(example, messages, tools), 0
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        # What follows the last assistant turn neither counts nor can be seen from it.
        tokens = self._templated(example, messages[: last + 1], tools)
        prompt = self._templated(example, messages[:last], tools, add_generation_prompt=True) if last else []
        return tokens, common(prompt, tokens)

    def _templated(self, example: Example, messages: list[Any], tools: Any, **options: bool) -> list[int]:
        try:
            return list(self.tokenizer.apply_chat_template(messages, tools=tools, **options))
        except (TemplateError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{example.where}: the model's chat template refuses the row: {reason}") from None

    def _plain(self, example: Example) -> tuple[list[int], int]:
        """Prompt and completion as they stand, as `mlx_lm.generate` does where there is no chat template."""
        if example.kind == ("messages",):
            raise UserError(
                f"{example.where}: the model has no chat template, which messages need.\n"
                "Use rows of prompt and completion or of text, or a chat (instruct) model."
            )
        self.untemplated += 1
        prompt = self.tokenizer.encode(example.values["prompt"])
        completion = self.tokenizer.encode(example.values["completion"], add_special_tokens=False)
        return self._with_end(prompt + completion), len(prompt) if self.mask else 0

    def _with_end(self, tokens: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return tokens if end is None or tokens[-1:] == [end] else [*tokens, end]

    def notes(self) -> list[str]:
        notes = []
        if self.cut:
            notes.append(
                f"data: {len(self.cut)} rows were cut to trainer.max_seq_length={self.max_length} tokens "
                f"(the longest has {self.longest}; first: {self.cut[0]})"
            )
        if self.left_out:
            notes.append(
                f"data: {len(self.left_out)} rows have nothing to learn from and are left out "
                f"(first: {self.left_out[0]})"
            )
        if self.untemplated:
            notes.append("data: the model has no chat template: prompt and completion are simply joined")
        return notes


def messages_of(example: Example) -> list[dict[str, Any]]:
    if example.kind == ("messages",):
        return example.values["messages"]
    prompt, completion = example.values["prompt"], example.values["completion"]
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def common(prompt: list[int], tokens: list[int]) -> int:
    """How many tokens the two share at their start: all of the prompt, unless the template writes a turn that
    is still to come differently from one that is there."""
    pairs = enumerate(zip(prompt, tokens, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(prompt), len(tokens)))
