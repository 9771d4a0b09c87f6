"""What a health check has found."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Finding:
    """`check`: which one found it. `numbers`: all that `text` quotes, unrounded. `proposal`: the setting that it ends
    with, as it would be typed; empty where there is none."""

    check: str
    text: str
    numbers: dict[str, Any] = field(default_factory=dict)
    proposal: str = ""
