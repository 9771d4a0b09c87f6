"""Reads the header of a GGUF file: its metadata, and how each tensor is stored.

MLX reads the tensors themselves, but crashes on a damaged header and silently turns some kinds of tensors
into float16, so the header is checked here first. Layout:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_core.errors import UserError

FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)
MOST_VALUES_PER_BYTE = 8
KINDS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass
class Header:
    """`metadata` by key, arrays as lists; `kinds` maps a tensor's name to its storage, for example Q4_1."""

    metadata: dict[str, Any]
    kinds: dict[str, str]


def read_header(path: Path) -> Header:
    """Raises UserError if the file is not GGUF or is damaged."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(content).header()
    except struct.error as error:
        raise UserError(f"{path} is not a GGUF file of version 2 or 3, or is damaged (it ends too early).") from error
    except (ValueError, KeyError, OverflowError, MemoryError) as error:
        raise UserError(f"{path} is not a GGUF file of version 2 or 3, or is damaged ({error}).") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


class _Reader:
    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.at = 0

    def header(self) -> Header:
        if self.content[:4] != b"GGUF":
            raise ValueError("it does not start with GGUF")
        self.at = 4
        version, tensors, entries = self.fixed("IQQ")
        if version not in VERSIONS:
            raise ValueError(f"version {version}")
        metadata = {}
        for _ in range(entries):
            key = self.string()
            metadata[key] = self.value(self.fixed("I")[0])
        return Header(metadata, dict(self.tensor() for _ in range(tensors)))

    def tensor(self) -> tuple[str, str]:
        name = self.string()
        (dimensions,) = self.fixed("I")
        if math.prod(self.fixed(f"{dimensions}Q")) > MOST_VALUES_PER_BYTE * len(self.content):
            raise ValueError(f"tensor {name} is bigger than the file")
        kind, _offset = self.fixed("IQ")
        return name, KINDS.get(kind, f"type {kind}")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.fixed(FIXED[kind])[0]
        element, count = self.fixed("IQ")
        if element in FIXED:
            return list(self.fixed(f"{count}{FIXED[element]}"))
        return [self.value(element) for _ in range(count)]

    def string(self) -> str:
        (length,) = self.fixed("Q")
        text = self.fixed(f"{length}s")[0]
        return text.decode("utf-8", errors="replace")

    def fixed(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.content, self.at)
        self.at += struct.calcsize("<" + layout)
        return values
