"""Rows to be answered, and what an engine answers to them: what stock mlx_lm does with the saved adapter."""

from pathlib import Path
from typing import Any

import mlx_lm
import pytest

from lora_core import saved
from lora_core.config import TrainConfig
from lora_core.errors import UserError
from lora_core.samples import ANSWER_TOKENS, LONGEST_PROMPT, OPENING, Sample, spread
from tests.lora_core.data_helpers import CHAT, PAIR, load, make_tokenizer, write
from tests.lora_core.helpers import new_engine, run


def test_what_is_asked_and_expected(folder: Path, tokenizer: Any) -> None:
    write(folder / "valid.jsonl", PAIR, CHAT, {"text": "abcdefgh"})
    pair, chat, text = load(folder, tokenizer).samples
    assert (pair.prompt, pair.expected) == ("add 1", "two")
    assert tokenizer.decode(pair.tokens) == "<s>user:add 1</s><s>assistant:"
    assert (chat.prompt, chat.expected) == ("c?", "dd")
    assert tokenizer.decode(chat.tokens) == "<s>user:a?</s><s>assistant:b</s><s>user:c?</s><s>assistant:"
    assert (text.prompt, text.expected) == ("abcd", "efgh")


def test_a_text_of_several_lines_is_cut_before_its_last(folder: Path, tokenizer: Any) -> None:
    long = "x" * LONGEST_PROMPT + "\nA: b"
    texts = ("table: t\nQ: who?\nA: me", "table: t\n", "\n\nabcd", long)
    write(folder / "valid.jsonl", *({"text": text} for text in texts))
    several, trailing, blank, too_long = load(folder, tokenizer).samples
    assert (several.prompt, several.expected) == ("table: t\nQ: who?", "A: me")
    assert tokenizer.decode(several.tokens).endswith("table: t\nQ: who?\n")
    assert (trailing.prompt + trailing.expected, blank.prompt + blank.expected) == ("table: t", "abcd")
    assert too_long.prompt == "x" * OPENING


def test_rows_are_spread_over_the_set() -> None:
    found = [Sample(str(place), "", []) for place in range(10)]
    assert [each.prompt for each in spread(found, 3)] == ["0", "3", "6"]
    assert spread(found, 10) == spread(found, 20) == found and spread(found, 0) == []


def test_without_a_chat_template_prompts_are_given_as_they_are(folder: Path) -> None:
    tokenizer = make_tokenizer(None)
    write(folder / "train.jsonl", PAIR)
    (sample,) = load(folder, tokenizer).samples
    assert (sample.prompt, sample.expected, tokenizer.decode(sample.tokens)) == ("add 2", "four", "add 2")


def test_the_first_that_differ_and_are_short(folder: Path, tokenizer: Any) -> None:
    long = {"prompt": "x" * LONGEST_PROMPT, "completion": "y"}
    silent = {"messages": [{"role": "assistant", "content": "hello"}]}
    rows = [{"prompt": f"add {i // 2}", "completion": str(i)} for i in range(9)]
    blank = {"prompt": " \n", "completion": "y"}
    write(folder / "valid.jsonl", long, silent, blank, *rows)
    found = load(folder, tokenizer).samples
    assert [(each.prompt, each.expected) for each in found] == [(f"add {i}", str(2 * i)) for i in range(5)]
    write(folder / "test.jsonl", PAIR)
    assert [each.prompt for each in load(folder, tokenizer).samples] == ["add 1"], "the test set comes first"


@pytest.mark.parametrize("train_type", ["lora", "dora", "full"])
def test_answers_are_those_of_mlx_lm(make_spec: Any, train_type: str) -> None:
    spec = make_spec("trial", train_type=train_type, dropout=0.5, iters=12)
    engine = new_engine()
    run(engine, spec)
    config, adapter = TrainConfig.from_dict(spec.config), Path(spec.folder) / "adapters"
    before, with_it, after = (saved.answers(engine, config, folder, 1)[0].answer for folder in (None, adapter, None))
    assert before == after == stock(engine, None) and with_it == stock(engine, adapter) != before


def stock(engine: Any, adapter: Path | None) -> str:
    model, tokenizer, *_ = mlx_lm.load(engine.base.info.folder, adapter_path=None if adapter is None else str(adapter))
    return mlx_lm.generate(model, tokenizer, engine.data.samples[0].tokens, max_tokens=ANSWER_TOKENS).strip()


def test_an_adapter_that_is_not_there(make_spec: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        saved.answers(new_engine(), TrainConfig.from_dict(make_spec("trial").config), tmp_path / "none", 1)
