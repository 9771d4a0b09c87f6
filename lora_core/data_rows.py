"""The form of a row as it is read: `prompt`+`completion`, `messages` or `text`, looked for in that order.

Each row is read by its own keys, so a file may mix them.
"""

import json
from dataclasses import dataclass
from typing import Any

from lora_core.errors import UserError, near

KINDS = (("prompt", "completion"), ("messages",), ("text",))
EXPECTED = "Expected prompt and completion, or messages, or text."


@dataclass(frozen=True)
class Example:
    """One row as read, its form checked. `where`: file:line, for messages."""

    where: str
    kind: tuple[str, ...]
    values: dict[str, Any]


Examples = dict[str, list[Example]]


def parse_line(where: str, line: bytes) -> Example:
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
    return to_example(where, values)


def to_example(where: str, values: dict[str, Any]) -> Example:
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


def check_has_prompts(splits: Examples) -> None:
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
