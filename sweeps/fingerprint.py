"""What makes two studies the same: everything in the configuration that can change a result."""

import hashlib
import json
from collections.abc import Collection
from typing import Any

from lora_core.adapter_folder import digest
from lora_core.config import ROOM
from lora_core.records import StudyRecord
from sweeps.axes import Axis
from sweeps.config import SweepConfig

# How a study is run and where it is kept; none of it changes a trial's result.
RUN_CONTROL = (
    "study", "n_trials", "storage", "output_dir", "adapter_path", "fuse", "fuse_quantization", "keep_state", "tracking",
    "cluster",
    "search.name", "search.space", "search.confirm", *(f"trainer.{name}" for name in ROOM),
)  # fmt: skip


def identity(config: dict[str, Any], axes: list[dict[str, Any]]) -> dict[str, Any]:
    """Dotted key → value of all that matters, from `SweepConfig.to_dict()` and `Axis.to_dict()` of each axis.

    Both are in `study.json`, so the identity of an old study can be had too, for `differences`.
    """
    kept = {key: value for key, value in flat(config).items() if not under(key, RUN_CONTROL)}
    return kept | {f"axis {axis['key']}": axis for axis in axes}


def contents(record: StudyRecord) -> dict[str, str]:
    """What must be the same for two runs to belong to one study, beside their configuration: short hashes of what it
    names."""
    known = {"contents of the model": record.model["fingerprint"], "contents of the data": record.data["fingerprint"]}
    return known | {f"contents of {path}": digest for path, digest in record.starts.items()}


def starts(config: SweepConfig, axes: list[Axis]) -> dict[str, str]:
    """The adapters that trials start from, by path, with a short hash of each."""
    choices = [choice for axis in axes if axis.key == "resume_adapter_file" for choice in axis.choices or []]
    return {path: digest(path) for path in (config.resume_adapter_file, *choices) if path is not None}


def fingerprint(config: SweepConfig, axes: list[Axis]) -> str:
    """A short hash of the `identity`."""
    content = identity(config.to_dict(), [axis.to_dict() for axis in axes])
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line a key in which two identities differ: `lora_parameters.rank: 8 → 16`."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = (_shown(side[key]) if key in side else "absent" for side in (old, new))
        if before != after:
            lines.append(f"{key}: {before} → {after}")
    return lines


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        found |= flat(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return found


def under(key: str, names: Collection[str]) -> bool:
    """Whether the key is one of these, or in a group of these."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _shown(value: Any) -> str:
    """An axis as its override, so that the line can be compared with what was typed."""
    return str(Axis(**value)).partition("=")[2] if isinstance(value, dict) else json.dumps(value)
