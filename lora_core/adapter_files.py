"""Adapters on disk, in the layout of stock mlx_lm: `adapters.safetensors` and `adapter_config.json`.

mlx_lm multiplies B·A by `scale` itself, so `scale` there is our multiplier; α, α/r and the scaling stand beside it.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from safetensors.numpy import save_file

from lora_core.adapters import ExpertLora, Site, Weights
from lora_core.config import TrainConfig
from lora_core.errors import UserError
from lora_core.records import ADAPTER, write_json
from lora_core.split import Split

SIDES = ("lora_a", "lora_b", "m")  # mlx_lm's names of what a layer learns, the last one with DoRA
Adapter = Sequence[Weights]  # A [in, r], B [r, out], and with DoRA m [out], by site


def save_adapter(folder: Path, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> str:
    """Writes both files, each whole or not at all, and returns the sha256 of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"{ADAPTER}.part.safetensors"
    try:
        save_file(tensors, beside, metadata={"format": "mlx"})
        with beside.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        write_json(folder / "adapter_config.json", config)
        os.replace(beside, folder / ADAPTER)
    finally:
        beside.unlink(missing_ok=True)  # there only if something went wrong
    return digest


def adapter_config(config: TrainConfig, depth: int, sites: Sequence[Site], model: str) -> dict[str, Any]:
    """What `mlx_lm.load` needs to rebuild the layers, and what a reader wants to know."""
    lora = config.lora_parameters
    common = {"fine_tune_type": config.train_type, "num_layers": depth, "model": model}
    if config.train_type == "full":
        return common  # no layer has to be rebuilt
    return common | {
        "lora_parameters": {
            "rank": lora.rank,
            "scale": lora.multiplier,
            "dropout": lora.dropout,
            "keys": list(dict.fromkeys(site.key for site in sites)),
            "alpha": lora.alpha,
            "scale_ratio": lora.ratio,
            "scaling": lora.scaling,
            "dropout_on": lora.dropout_on,
        }
    }


def named(split: Split, sites: Sequence[Site], adapter: Adapter) -> list[tuple[str, mx.array]]:
    """The tensors under mlx_lm's names and in its layouts."""
    tensors = []
    for site, weights in zip(sites, adapter, strict=True):
        own = (w.swapaxes(-1, -2) for w in weights) if isinstance(site.module, ExpertLora) else weights
        name = f"{split.block_name(site.layer)}.{site.key}"
        tensors += [(f"{name}.{side}", array) for side, array in zip(SIDES, own, strict=False)]
    return tensors


def load_adapter(path: str, split: Split, sites: Sequence[Site], rank: int, dora: bool = False) -> list[Weights]:
    """What was learned, by site, from `resume_adapter_file`; every name and shape must be as this run makes them.

    Raises UserError if the file is missing, unreadable, not finite, or differs, with the differences.
    """
    tensors = load_tensors(path, _expected(split, sites, rank, dora))
    return [_weights(tensors, f"{split.block_name(site.layer)}.{site.key}", site) for site in sites]


def load_tensors(path: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, mx.array]:
    """The tensors of `resume_adapter_file` in float32; raises UserError as `load_adapter` says."""
    tensors = _read(path)
    differences = _differences({name: tuple(t.shape) for name, t in tensors.items()}, shapes)
    if differences:
        raise UserError(f"resume_adapter_file={path} does not fit this run: " + "; ".join(differences))
    if not all(mx.isfinite(tensor).all().item() for tensor in tensors.values()):
        raise UserError(f"resume_adapter_file={path} holds values that are not finite.")
    return tensors


def _read(path: str) -> dict[str, mx.array]:
    file = Path(path) / ADAPTER if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(f"resume_adapter_file={path} does not exist: expected {ADAPTER} or the folder that holds it.")
    try:
        tensors = mx.load(str(file), format="safetensors")
    except RuntimeError as error:
        raise UserError(f"resume_adapter_file={path} is not a safetensors file: {error}") from None
    return {name: tensor.astype(mx.float32) for name, tensor in tensors.items()}


def _weights(tensors: dict[str, mx.array], name: str, site: Site) -> Weights:
    found = [tensors[f"{name}.{side}"] for side in SIDES if f"{name}.{side}" in tensors]
    return tuple(w.swapaxes(-1, -2) for w in found) if isinstance(site.module, ExpertLora) else tuple(found)


def _expected(split: Split, sites: Sequence[Site], rank: int, dora: bool) -> dict[str, tuple[int, ...]]:
    adapter = []
    for site in sites:
        a, b = site.module.shapes()
        pair = mx.zeros((*a[:-1], rank)), mx.zeros((*b[:-2], rank, b[-1]))
        adapter.append((*pair, mx.zeros(b[-1:])) if dora else pair)
    return {name: tuple(tensor.shape) for name, tensor in named(split, sites, adapter)}


def _differences(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> list[str]:
    missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    other = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    lines = []
    if other:
        name = other[0]
        lines.append(f"{len(other)} of other shape ({name}: found {found[name]}, expected {expected[name]})")
    if missing:
        lines.append(f"{len(missing)} missing ({min(missing)}, …)")
    if extra:
        lines.append(f"{len(extra)} that this run does not have ({min(extra)}, …)")
    return lines
