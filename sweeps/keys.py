"""Dotted config keys: which exist, what each takes, and which one a wrong one was meant to be."""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import NoneType
from typing import Any, get_args, get_origin

from lora_core.errors import UserError

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list [a,b]",
    dict: "key: value pairs",
    NoneType: "null",
}


class UnknownKey(UserError):
    """There is no such key. The command that was given it says how to see all of them."""


def key_types(cls: Any, prefix: str = "") -> dict[str, set[type]]:
    """Dotted key → the plain types it takes, for every leaf of the nested dataclass `cls`."""
    found: dict[str, set[type]] = {}
    for field in fields(cls):
        key = prefix + field.name
        if is_dataclass(field.type):
            found |= key_types(field.type, key + ".")
        else:
            found[key] = _plain_types(field.type)
    return found


def _plain_types(annotation: Any) -> set[type]:
    origin = get_origin(annotation)
    if origin in (list, dict):
        return {origin}
    members = get_args(annotation)
    return set().union(*map(_plain_types, members)) if members else {annotation}


def expected(types: set[type]) -> str:
    """The types in plain words: `a whole number or null`."""
    return " or ".join(words for kind, words in _WORDS.items() if kind in types) or "another value"


def near_key(key: str, known: Iterable[str]) -> str:
    """` Did you mean a.b?` for the known keys nearest to `key`, by the whole key or by its last part."""
    keys = list(known)
    last = key.rpartition(".")[2]
    leaves = {known_key.rpartition(".")[2] for known_key in keys}
    matches = get_close_matches(key, keys, n=2, cutoff=0.7)
    for leaf in get_close_matches(last, leaves, n=2, cutoff=0.7):
        matches += [known_key for known_key in keys if known_key.rpartition(".")[2] == leaf]
    return f" Did you mean {', '.join(list(dict.fromkeys(matches))[:3])}?" if matches else ""
