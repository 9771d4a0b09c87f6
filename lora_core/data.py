"""Training data: from `data.path` to rows of tokens that say which tokens count in the loss.

A row is `prompt`+`completion`, `messages` or `text`, looked for in that order; each row is read by its own
keys, so a file may mix them. Rows become tokens as in mlx_lm's datasets, so a prompt given to
`mlx_lm.generate` starts with the very tokens the adapter was trained on. The loss covers the completion, the
last assistant turn or the whole text.
"""

import hashlib
import importlib.util
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError

from lora_core.config import DataConfig
from lora_core.errors import UserError, near

BUILTIN = {"builtin:demo": Path(__file__).parent / "demo"}
KINDS = (("prompt", "completion"), ("messages",), ("text",))
EXPECTED = "Expected prompt and completion, or messages, or text."
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class Row:
    """One tokenised row. `tokens`: int32 [n]. `counts`: bool [n], True where the token is to be predicted:
    never the first, and at least one other."""

    tokens: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass
class Dataset:
    """Tokenised splits. `fingerprint`: 16 hex digits of the tokens and of what counts, wherever the data
    lies. `notes`: one line each, of what was split, cut or left out."""

    path: str
    train: list[Row]
    valid: list[Row]
    test: list[Row] | None
    fingerprint: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Example:
    """One row as read, its form checked. `where`: file:line, for messages."""

    where: str
    kind: tuple[str, ...]
    values: dict[str, Any]


Examples = dict[str, list[Example]]


def load_data(config: DataConfig, tokenizer: Any, max_seq_length: int, seed: int) -> Dataset:
    """Reads, checks, splits and tokenises `config.path`.

    `tokenizer` is mlx_lm's TokenizerWrapper; rows longer than `max_seq_length` tokens are cut; `seed` (0 or
    more) decides which rows of a single file are for validation. Raises UserError for whatever is wrong with
    the data.
    """
    splits, notes = read_data(config, seed)
    tokeniser = _Tokeniser(tokenizer, config.mask_prompt is not False, max_seq_length)
    rows = {name: tokeniser.rows(examples) for name, examples in splits.items()}
    notes += tokeniser.notes() + _overlaps(rows)
    return Dataset(config.path, rows["train"], rows["valid"], rows.get("test"), _fingerprint(rows), notes)


def read_data(config: DataConfig, seed: int) -> tuple[Examples, list[str]]:
    """The checked rows of each split (train, valid and perhaps test) and notes; needs no tokenizer."""
    source = _local(config.path)
    if source is None:
        splits = _from_hub(config.path)
    elif source.is_dir():
        splits = {name: _read_file(source / f"{name}.jsonl") for name in _names_in(source, config)}
    else:
        splits = {"train": _read_file(source)}
    if config.mask_prompt:
        _check_has_prompts(splits)
    notes = [] if "valid" in splits else [_split(splits, config, seed)]
    return splits, notes


# ---- where the rows come from ------------------------------------------------------------------------------


def _local(path: str) -> Path | None:
    """The file or folder that `path` means, or None where it can only be a Hugging Face id."""
    if path.startswith("builtin:"):
        if path not in BUILTIN:
            raise UserError(f"data.path={path}: expected {', '.join(BUILTIN)}.{near(path, BUILTIN)}")
        return BUILTIN[path]
    try:
        local = Path(path).expanduser()
        return local if _usable(path, local) else None
    except (OSError, RuntimeError) as error:  # no permission, a name too long, no home folder of that user
        raise UserError(f"data.path={path[:200]} cannot be read: {error}.") from None


def _usable(path: str, local: Path) -> bool:
    """True for a folder or a .jsonl file, False for a Hugging Face id, an error for anything else."""
    if local.is_dir() or (local.is_file() and local.suffix == ".jsonl"):
        return True
    if local.exists():
        raise UserError(f"data.path={path} is neither a folder nor a .jsonl file (one JSON object a line).")
    like_an_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) and local.suffix != ".jsonl"
    if like_an_id and not local.parent.exists():
        return False
    beside = os.listdir(local.parent) if local.parent.is_dir() else []
    raise UserError(
        f"data.path={path}: there is no such file or folder.{near(local.name, beside)}\n"
        "Expected a folder with train.jsonl and valid.jsonl, a .jsonl file, or a Hugging Face id: owner/name."
    )


def _names_in(folder: Path, config: DataConfig) -> list[str]:
    """The splits of a folder, which must have train and valid."""
    found = sorted(path.name for path in folder.glob("*.jsonl"))
    for name in ("train.jsonl", "valid.jsonl"):
        if name in found:
            continue
        has = f"It has {', '.join(found[:5])}." if found else "It has no .jsonl file."
        message = f"data.path={config.path}: the folder has no {name}. {has}{near(name, found)}"
        if "train.jsonl" in found:
            message += (
                f"\nTo validate on a share of the training rows (data.valid_fraction="
                f"{config.valid_fraction:g}): data.path={folder}/train.jsonl"
            )
        raise UserError(message)
    return [name for name in SPLITS if f"{name}.jsonl" in found]


def _split(splits: Examples, config: DataConfig, seed: int) -> str:
    """Moves a share of the training rows, chosen by `seed`, to validation; both keep their order."""
    rows = splits["train"]
    if len(rows) < 2:
        raise UserError(f"data.path={config.path}: one row alone cannot be split for validation.")
    size = min(max(1, round(len(rows) * config.valid_fraction)), len(rows) - 1)
    # A spawn key of its own keeps this choice independent of the other draws made from the same seed.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    chosen = set(rng.permutation(len(rows))[:size].tolist())
    splits["train"] = [row for i, row in enumerate(rows) if i not in chosen]
    splits["valid"] = [row for i, row in enumerate(rows) if i in chosen]
    return (
        f"data: {len(rows)} rows split into {len(rows) - size} for training and {size} for validation "
        f"(data.valid_fraction={config.valid_fraction:g}, seed={seed})"
    )


def _from_hub(path: str) -> Examples:
    """The splits of a Hugging Face dataset. A hub out of reach is an error after seconds, not a wait."""
    told = f"data.path={path} is no file or folder here, so it is read as a Hugging Face id"
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f"{told},\nwhich needs the package datasets: uv pip install datasets")
    try:
        if not {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"} & set(os.environ):
            importlib.import_module("huggingface_hub").HfApi().dataset_info(path, timeout=10)
        found = importlib.import_module("datasets").load_dataset(path)
    except Exception as error:  # the two packages raise a dozen unrelated kinds for "not there"
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{told},\nbut it could not be loaded: {reason[:200]}") from None
    names = {"train": "train", "valid": "valid", "validation": "valid", "test": "test"}
    splits = {
        names[name]: [_example(f"{path}:{name}:{i}", dict(row)) for i, row in enumerate(rows, 1)]
        for name, rows in found.items()
        if name in names and len(rows)
    }
    if "train" not in splits:
        raise UserError(f"data.path={path} has no split train: found {', '.join(found)}.")
    return splits


def _read_file(path: Path) -> list[Example]:
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    examples = [_parse(f"{path}:{i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    if not examples:
        raise UserError(f"{path} is empty: expected one JSON object a line.\n{EXPECTED}")
    return examples


# ---- the form of a row -------------------------------------------------------------------------------------


def _parse(where: str, line: bytes) -> Example:
    try:
        values = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start + 1} of the line).") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno}).\n"
            f"Found {_shown(line.decode())}, expected one JSON object a line."
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists nested too deep
        raise UserError(f"{where}: not a JSON row that can be read ({error}).") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: found {_named(values)}, expected a JSON object.\n{EXPECTED}")
    return _example(where, values)


def _example(where: str, values: dict[str, Any]) -> Example:
    kind = next((kind for kind in KINDS if all(values.get(key) is not None for key in kind)), None)
    if kind is None:
        known = [key for kind in KINDS for key in kind]
        guesses = [near(key, known) for key in values if key not in known]
        found = f"found the keys {', '.join(map(repr, values))[:200]}" if values else "found no keys"
        raise UserError(f"{where}: {found}.\n{EXPECTED}{next(filter(None, guesses), '')}")
    if kind == ("messages",):
        _check_messages(where, values["messages"])
    else:
        for key in kind:
            _check_text(where, key, values[key])
    return Example(where, kind, values)


def _check_messages(where: str, messages: Any) -> None:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UserError(f"{where}: messages must be a list of objects with role and content.")
    for i, message in enumerate(messages):
        for key in ("role", "content"):
            if key == "content" and message.get("tool_calls") and message.get("content") is None:
                continue  # an assistant that calls a tool says nothing
            if key not in message:
                raise UserError(f"{where}: messages[{i}] has no {key}.{near(key, message)}")
            _check_text(where, f"messages[{i}].{key}", message[key])
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        found = f"roles: {', '.join(map(repr, roles))[:200]}" if roles else "no messages"
        raise UserError(f"{where}: messages has no assistant turn to learn from ({found}).")


def _check_text(where: str, key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} is {_named(value)}, expected a string.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = ascii(value[error.start])
        raise UserError(f"{where}: {key} holds {found}, half of a surrogate pair and no character.") from None


def _check_has_prompts(splits: Examples) -> None:
    for example in (example for examples in splits.values() for example in examples):
        if example.kind == ("text",):
            raise UserError(
                f"{example.where}: data.mask_prompt=true, but a text row has no prompt to mask.\n"
                "Use rows of prompt and completion, or of messages, or leave data.mask_prompt at null."
            )


def _named(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null", str: "a string"}
    return names.get(type(value), f"the number {value}")


def _shown(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 60 else text[:57] + "...")


# ---- from a row to tokens ----------------------------------------------------------------------------------


class _Tokeniser:
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
        tokens, start = self._tokens(example)
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

    def _tokens(self, example: Example) -> tuple[list[int], int]:
        """All tokens of the row, and how many of them are prompt."""
        if example.kind == ("text",):
            return self._with_end(self.tokenizer.encode(example.values["text"])), 0
        if self.tokenizer.has_chat_template:
            return self._chat(example)
        return self._plain(example)

    def _chat(self, example: Example) -> tuple[list[int], int]:
        messages, tools = _messages(example), example.values.get("tools")
        if not self.mask:
            return self._templated(example, messages, tools), 0
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        # What follows the last assistant turn neither counts nor can be seen from it.
        tokens = self._templated(example, messages[: last + 1], tools)
        prompt = self._templated(example, messages[:last], tools, add_generation_prompt=True) if last else []
        return tokens, _common(prompt, tokens)

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


def _messages(example: Example) -> list[dict[str, Any]]:
    if example.kind == ("messages",):
        return example.values["messages"]
    prompt, completion = example.values["prompt"], example.values["completion"]
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def _common(prompt: list[int], tokens: list[int]) -> int:
    """How many tokens the two share at their start: all of the prompt, unless the template writes a turn that
    is still to come differently from one that is there."""
    pairs = enumerate(zip(prompt, tokens, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(prompt), len(tokens)))


# ---- about the whole ---------------------------------------------------------------------------------------


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
