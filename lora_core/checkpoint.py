"""A trial on disk, running or, with `keep_state`, ended: what a slot needs to go on from its step as if nothing had
happened.

    <trial>/slot-120.safetensors  adapters, both moments, and the best adapters so far, at the trial's own rank
    <trial>/slot.json             the host's numbers, and name and sha256 of the file above

The arrays are whole on disk before `slot.json` names them, and the file before is kept until then.
"""

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from lora_core.config import ROOM
from lora_core.errors import UserError
from lora_core.layers import Weights
from lora_core.records import CHECKPOINT, load_metrics, remove_checkpoint, write_json, write_metrics
from lora_core.slot import Slot
from lora_core.stacks import State

PARTS = ("adapter", "first", "second")
ABSENT = {"best": math.inf, "last": math.nan, "best_step": None}  # which JSON has as null
HOST = (
    "step", "best", "best_step", "last", "since_best", "looked", "seconds", "tokens", "pending", "mark", "resume_error",
)  # fmt: skip


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
    index = _index(slot.folder)
    if index is None or (_matters(index.config), index.repeat) != (_matters(slot.spec.config), slot.spec.repeat):
        return None
    return _restored(slot, slot.folder, index)


def load_kept(slot: Slot, folder: Path) -> dict[int, State]:
    """The same with the state that another trial has kept in `folder`; one that ran out of patience has all of it
    again. Raises UserError if the state is not whole."""
    index = _index(folder)
    if index is None:
        raise UserError(f"{folder}: the state that was kept is damaged.")
    state = _restored(slot, folder, index)
    if slot.verdict is not None:
        slot.since_best = 0
    return state


def _matters(config: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration changes a result: another machine may have room for fewer slots."""
    trainer = {key: value for key, value in config["trainer"].items() if key not in ROOM}
    return {**config, "trainer": trainer, "keep_state": None}


def _index(folder: Path) -> Index | None:
    """That of the checkpoint in `folder`, if it is whole."""
    try:
        index = Index(**json.loads((folder / CHECKPOINT).read_text()))
        content = (folder / index.file).read_bytes()
    except (OSError, ValueError, TypeError):
        return None
    return index if hashlib.sha256(content).hexdigest() == index.sha256 else None


def _restored(slot: Slot, folder: Path, index: Index) -> dict[int, State]:
    arrays: Any = mx.load(str(folder / index.file))
    slot.looked = index.host["step"]  # of checkpoints that do not say: they were made after evaluations
    for name, value in index.host.items():
        setattr(slot, name, ABSENT[name] if value is None else tuple(value) if name == "mark" else value)
    parts: dict[str, dict[int, Weights]] = {part: {} for part in (*PARTS, "best")}
    for name in sorted(arrays):  # a, b and m of a layer in this order
        part, layer, _ = name.split(".")
        parts[part][int(layer)] = (*parts[part].get(int(layer), ()), arrays[name])
    slot.best_adapter = parts["best"] or None
    return {layer: tuple(parts[part][layer] for part in PARTS) for layer in parts["adapter"]}


def rows(slot: Slot, folder: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` in `folder` up to the slot's step; they are all that the slot's own has then."""
    kept = [row for row in load_metrics(folder) if row["step"] <= slot.step]
    write_metrics(slot.folder, kept)
    return kept
