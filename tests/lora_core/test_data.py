"""Rows, masks, sources and complaints, with a byte-level tokenizer so that every letter is one token."""

import importlib.util
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_core.config import DataConfig
from lora_core.data import Dataset, Row, load_data, read_data
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


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def write(path: Path, *rows: Any) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "train.jsonl", TEXT, PAIR, CHAT)
    write(tmp_path / "valid.jsonl", {"prompt": "add 2", "completion": "four"})
    return tmp_path


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


# ---- rows and masks --------------------------------------------------------------------------------------


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


# ---- sources ---------------------------------------------------------------------------------------------


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


# ---- bad input -------------------------------------------------------------------------------------------


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
