"""How numbers, settings and names are written, the same in HTML, Markdown and figures."""

import json
import os
from typing import Any

NOTHING = "–"
UV = "uv run "
LABELS = {"base": "base model", "default": "default settings"}  # the rows that are no trials


def typed(command: str) -> str:
    """The command as it is to be typed, however it was: where `uv run` started this program, the shell does not find it
    without."""
    bare = command.removeprefix(UV)
    return UV + bare if bare and os.environ.get("UV_RUN_RECURSION_DEPTH") else bare


def loss(number: float | None) -> str:
    return NOTHING if number is None else f"{number:.4f}"


def ppl(number: float | None) -> str:
    return NOTHING if number is None else f"{number:.2f}" if number < 1e4 else f"{number:.3g}"


def signed(number: float | None) -> str:
    return NOTHING if number is None else f"{number:+.4f}".replace("-", "−")


def percent(number: float | None) -> str:
    return NOTHING if number is None else f"{number:.2f} %".replace("-", "−")


def signed_percent(number: float | None) -> str:
    return NOTHING if number is None else f"{number:+.2f} %".replace("-", "−")


def amount(number: float | None) -> str:
    """A count or a measurement: 1,234,567, 12.3, 0.0213."""
    if number is None:
        return NOTHING
    if float(number).is_integer() or abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.3g}"


def count(number: float | None) -> str:
    """A count where room is scarce: 32,768, 2.44M, 8.03B."""
    if number is None or number < 1e6:
        return amount(number)
    return f"{number / 1e6:.3g}M" if number < 1e9 else f"{number / 1e9:.3g}B"


def clock(seconds: float) -> str:
    """`1 h 5 min`, `3 min 20 s`, `45 s`."""
    whole = round(seconds)
    parts = [(whole // 3600, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    shown = [f"{count} {unit}" for count, unit in parts if count][:2]
    return " ".join(shown) or "0 s"


def setting(value: Any) -> str:
    """A setting as one would type it: 0.00021, null, true, [q_proj,v_proj]."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def settings(params: dict[str, Any], names: dict[str, str]) -> str:
    """`rank 16, scale_ratio 2.5`, with the short `names` of the keys."""
    return ", ".join(f"{names.get(key, key)} {setting(value)}" for key, value in params.items())


def plural(count: int, word: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def listed(parts: list[str]) -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
