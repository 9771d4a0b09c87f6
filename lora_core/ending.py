"""What a trial leaves on disk once it has ended: its record, with what it cost, and its best adapter."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from lora_core import backend
from lora_core.adapter_folder import save_adapter
from lora_core.learned import AdaptedLayers, OwnWeights
from lora_core.records import ADAPTER, remove_checkpoint
from lora_core.slot import Slot
from lora_core.trial import Ended

ON_HOST = {mx.float32: np.float32, mx.float16: np.float16, mx.bfloat16: np.uint16}
AT_ONCE = 1 << 30  # bytes that are brought over in one piece; MLX counts no further than to 2³¹


def leaving(slot: Slot, kind: AdaptedLayers | OwnWeights, state: str, reason: str | None) -> Callable[[], Ended]:
    """What writes the trial's last files. It does nothing with the device, so that several can write side by side."""
    costs = {"trainable_params": kind.parameters(slot.config), "peak_memory_gb": backend.peak_memory_gb()}
    metrics = {**slot.metrics(), **costs}
    if slot.spec.role == "base":
        metrics = {"best_val_loss": slot.last, "final_val_loss": slot.last, "val_perplexity": math.exp(slot.last)}
    elif slot.best_adapter is not None:
        tensors, described = kind.saved(slot.best_adapter, slot.config)
        return partial(_write, slot, state, reason, metrics, _on_host(tensors), described)
    return partial(_write, slot, state, reason, metrics)


def _on_host(tensors: dict[str, mx.array]) -> dict[str, np.ndarray]:
    """The same for `save_adapter`, brought over in few pieces: each transfer from a GPU waits for it."""
    pieces: list[dict[str, mx.array]] = [{}]
    for name, tensor in tensors.items():
        if pieces[-1] and tensor.nbytes + sum(each.nbytes for each in pieces[-1].values()) > AT_ONCE:
            pieces.append({})
        pieces[-1][name] = tensor
    return {name: array for piece in pieces for name, array in _in_one(piece).items()}


def _in_one(tensors: dict[str, mx.array]) -> dict[str, np.ndarray]:
    if len(tensors) == 1:
        ((name, tensor),) = tensors.items()
        return {name: np.array(tensor.view(mx.uint16) if tensor.dtype == mx.bfloat16 else tensor)}
    flat = np.array(mx.concatenate([tensor.reshape(-1).view(mx.uint8) for tensor in tensors.values()]))
    ends = np.cumsum([tensor.nbytes for tensor in tensors.values()])
    parts = dict(zip(tensors, np.split(flat, ends[:-1]), strict=True))
    return {name: parts[name].view(ON_HOST[each.dtype]).reshape(each.shape) for name, each in tensors.items()}


def _write(
    slot: Slot, state: str, reason: str | None, metrics: dict[str, float],
    tensors: dict[str, np.ndarray] | None = None, config: dict[str, Any] | None = None,
) -> Ended:  # fmt: skip
    digest = None
    if tensors is not None and config is not None:
        digest = save_adapter(slot.adapter_path, tensors, config)
        metrics["adapter_mb"] = (slot.adapter_path / ADAPTER).stat().st_size / 1e6
    record = slot.end(state, reason, metrics, digest)
    if not slot.keeps_state:
        remove_checkpoint(slot.folder)
    return Ended(slot.spec.name, vars(record).copy())
