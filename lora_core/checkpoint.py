"""A running trial on disk: what its slot needs to go on from a step as if nothing had happened.

    <trial>/slot-120.safetensors  adapters, both moments, and the best adapters so far, at the trial's own rank
    <trial>/slot.json             the host's numbers, and name and sha256 of the file above

The arrays are whole on disk before `slot.json` names them, and the file before is kept until then.
"""

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx

from lora_core.adapters import Weights
from lora_core.records import CHECKPOINT, load_metrics, remove_checkpoint, write_json, write_metrics
from lora_core.slot import Slot
from lora_core.stacks import State

PARTS = ("adapter", "first", "second")
ABSENT = {"best": math.inf, "last": math.nan, "best_step": None}  # which JSON has as null
HOST = ("step", "best", "best_step", "last", "since_best", "seconds", "tokens", "pending", "mark", "resume_error")


@dataclass
class Index:
    """`slot.json`. `host`: attributes of the slot by name, numbers in a form that loses no bit."""

    file: str
    sha256: str
    config: dict[str, Any]
    repeat: int
    host: dict[str, Any]


def save(slot: Slot, state: dict[int, State]) -> None:
    """Writes the slot and its state, by site.index or place; removes the checkpoint before."""
    parts = {part: {index: stacks[i] for index, stacks in state.items()} for i, part in enumerate(PARTS)}
    arrays = {
        f"{part}.{index}.{side}": array
        for part, weights in {**parts, "best": slot.best_adapter or {}}.items()
        for index, each in weights.items()
        for side, array in zip("abm", each, strict=False)
    }
    file = slot.folder / f"slot-{slot.step}.safetensors"
    beside = file.with_suffix(".part.safetensors")
    mx.save_safetensors(str(beside), arrays)
    with beside.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        os.fsync(opened.fileno())
    os.replace(beside, file)
    host = {name: getattr(slot, name) for name in HOST}
    write_json(slot.folder / CHECKPOINT, asdict(Index(file.name, digest, slot.spec.config, slot.spec.repeat, host)))
    remove_checkpoint(slot.folder, keep=file.name)


def load(slot: Slot) -> dict[int, State] | None:
    """Brings the slot to where its checkpoint is and returns its state as `save` got it, ready to be stepped.

    None if there is no checkpoint of this very trial, or a damaged one; the slot is as it was then.
    """
    try:
        index = Index(**json.loads((slot.folder / CHECKPOINT).read_text()))
        content = (slot.folder / index.file).read_bytes()
    except (OSError, ValueError, TypeError):
        return None
    if (index.config, index.repeat) != (slot.spec.config, slot.spec.repeat):
        return None
    if hashlib.sha256(content).hexdigest() != index.sha256:
        return None
    arrays: Any = mx.load(str(slot.folder / index.file))
    for name, value in index.host.items():
        setattr(slot, name, ABSENT[name] if value is None else tuple(value) if name == "mark" else value)
    parts: dict[str, dict[int, Weights]] = {part: {} for part in (*PARTS, "best")}
    for name in sorted(arrays):  # a, b and m of a layer in this order
        part, layer, _ = name.split(".")
        parts[part][int(layer)] = (*parts[part].get(int(layer), ()), arrays[name])
    slot.best_adapter = parts["best"] or None
    return {layer: tuple(parts[part][layer] for part in PARTS) for layer in parts["adapter"]}


def rows(slot: Slot) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` up to the slot's step; later ones are taken out of the file."""
    kept = [row for row in load_metrics(slot.folder) if row["step"] <= slot.step]
    write_metrics(slot.folder, kept)
    return kept
