"""Which tokens a row becomes and which of them count, held against mlx_lm where it does the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.lora_core.data_helpers import (
    CHAT,
    PAIR,
    TEMPLATE,
    TEXT,
    complaint,
    complaint_about,
    counted,
    load,
    load_rows,
    make_tokenizer,
    write,
)


def test_text_counts_whole_and_ends_with_eos(folder: Path, tokenizer: Any) -> None:
    row, ended = load_rows(folder, tokenizer, TEXT, {"text": "hello</s>"})
    assert tokenizer.decode(row.tokens.tolist()) == "hello</s>"
    assert row.counts.tolist() == [False] + [True] * 5  # nothing predicts the first token
    assert np.array_equal(row.tokens, ended.tokens)
    assert (row.tokens.dtype, row.counts.dtype) == (np.int32, np.bool_)


def test_only_the_completion_counts(folder: Path, tokenizer: Any) -> None:
    (row,) = load_rows(folder, tokenizer, PAIR)
    assert tokenizer.decode(row.tokens.tolist()) == "<s>user:add 1</s><s>assistant:two</s>"
    assert counted(row, tokenizer) == "two</s>"


def test_only_the_last_assistant_turn_counts(folder: Path, tokenizer: Any) -> None:
    trailing = {"messages": [*CHAT["messages"], {"role": "user", "content": "bye"}]}
    row, cut = load_rows(folder, tokenizer, CHAT, trailing)
    assert counted(row, tokenizer) == counted(cut, tokenizer) == "dd</s>"


def test_mask_prompt_false_counts_everything(folder: Path, tokenizer: Any) -> None:
    for row in load_rows(folder, tokenizer, TEXT, PAIR, CHAT, mask_prompt=False):
        assert row.counts.tolist() == [False] + [True] * (len(row) - 1)


def test_mask_prompt_true_wants_prompts(folder: Path, tokenizer: Any) -> None:
    assert load_rows(folder, tokenizer, PAIR, mask_prompt=True)[0].counts.sum() == 4
    assert "data.mask_prompt=true" in complaint_about(TEXT, folder, tokenizer, mask_prompt=True)


@pytest.mark.parametrize("mask", [True, False])
def test_same_tokens_and_prompt_lengths_as_mlx_lm(folder: Path, tokenizer: Any, mask: bool) -> None:
    from mlx_lm.tuner.datasets import ChatDataset, CompletionsDataset, TextDataset

    stock = [
        CompletionsDataset([PAIR], tokenizer, "prompt", "completion", mask).process(PAIR),
        ChatDataset([CHAT], tokenizer, mask_prompt=mask).process(CHAT),
        TextDataset([TEXT], tokenizer).process(TEXT),
    ]
    ours = load_rows(folder, tokenizer, PAIR, CHAT, TEXT, mask_prompt=None if mask else False)
    for (tokens, offset), row in zip(stock, ours, strict=True):
        assert row.tokens.tolist() == tokens
        assert row.counts.tolist() == [i >= max(offset, 1) for i in range(len(tokens))]


def test_what_generate_sends_is_how_the_row_begins(folder: Path, tokenizer: Any) -> None:
    (row,) = load_rows(folder, tokenizer, PAIR)
    user = [{"role": "user", "content": PAIR["prompt"]}]
    text = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer.encode(text, add_special_tokens=False)
    assert row.tokens[: len(prompt)].tolist() == prompt
    assert not row.counts[: len(prompt)].any()
    assert row.counts[len(prompt) :].all()


def test_generation_prompt_that_is_no_prefix(folder: Path) -> None:
    """Some templates open a turn to come in another way than a turn that is there."""
    (row,) = load_rows(folder, other := make_tokenizer(TEMPLATE.replace("'<s>assistant:'", "'<s>assistant>'")), PAIR)
    assert counted(row, other) == ":two</s>"


def test_without_a_chat_template(folder: Path) -> None:
    plain = make_tokenizer(None)
    write(folder / "train.jsonl", PAIR)
    data = load(folder, plain)
    assert plain.decode(data.train[0].tokens.tolist()) == "add 1two</s>"
    assert counted(data.train[0], plain) == "two</s>"
    assert any("no chat template" in note for note in data.notes)
    assert "no chat template" in complaint_about(CHAT, folder, plain)


def test_template_that_refuses_a_row(folder: Path) -> None:
    strict = make_tokenizer("{% if messages[0]['role'] != 'user' %}{{ no.such.thing }}{% endif %}" + TEMPLATE)
    row = {"messages": [{"role": "system", "content": "s"}, *CHAT["messages"]]}
    message = complaint_about(row, folder, strict)
    assert "chat template refuses" in message and "'no' is undefined" in message


def test_long_rows_are_cut_and_said_once(folder: Path, tokenizer: Any) -> None:
    write(folder / "train.jsonl", TEXT, {"text": "x" * 50}, {"text": "y" * 60})
    data = load(folder, tokenizer, length=40)
    assert [len(row) for row in data.train] == [6, 40, 40]
    (note,) = [note for note in data.notes if "trainer.max_seq_length=40" in note]
    assert "2 rows" in note and "61" in note


def test_long_row_that_is_all_prompt(folder: Path, tokenizer: Any) -> None:
    row = {"prompt": "p" * 100, "completion": "c"}
    (whole,) = load_rows(folder, tokenizer, row)
    first = int(whole.counts.argmax())
    message = complaint_about(row, folder, tokenizer, length=first)
    assert f"(at least {first + 1})" in message and "trainer.max_seq_length" in message
    write(folder / "train.jsonl", row)
    assert load(folder, tokenizer, length=first + 1).train[0].counts.sum() == 1


def test_rows_with_nothing_to_learn_are_left_out(folder: Path, tokenizer: Any) -> None:
    write(folder / "train.jsonl", PAIR, {"text": ""})
    data = load(folder, tokenizer)
    assert len(data.train) == 1
    assert any(f"{folder}/train.jsonl:2" in note for note in data.notes)
    write(folder / "train.jsonl", {"text": ""})
    assert "no row of this split has anything to learn from" in complaint(folder, tokenizer)


def test_tool_calls_need_no_content(folder: Path, tokenizer: Any) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    row = {"messages": [CHAT["messages"][0], call, CHAT["messages"][1]], "tools": None}
    assert counted(load_rows(folder, tokenizer, row)[0], tokenizer) == "b</s>"
