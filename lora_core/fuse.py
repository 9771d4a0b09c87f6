"""Merges an adapter into its base: W = W₀ + s·(A·B)ᵀ, saved as a model folder that mlx_lm loads."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import load_config, save

from lora_core.adapter_files import Adapter
from lora_core.adapters import Site
from lora_core.disk import check_room
from lora_core.models import Base


def fuse(folder: Path, base: Base, blocks: Sequence[nn.Module], sites: Sequence[Site],
         adapter: Adapter, multiplier: float) -> Path:  # fmt: skip
    """Writes the merged model to `folder` (replaced whole) in the dtype the base was trained in.

    Raises ValueError for a quantised layer, whose merged weights would need another format, and OSError where there is
    no room for the model; nothing is left of it then.
    """
    if any(isinstance(site.module.linear, nn.QuantizedLinear) for site in sites):
        raise ValueError("the base model is quantised")
    with _merged(sites, adapter, multiplier):
        return write_model(folder, base, blocks)


def write_model(folder: Path, base: Base, blocks: Sequence[nn.Module]) -> Path:
    """Writes the model as it is, without room for adapters, to `folder` (replaced whole)."""
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    config = load_config(Path(base.info.folder))
    for key in ("quantization", "quantization_config"):
        config.pop(key, None)
    try:
        with _plain(blocks):
            check_room(folder, sum(array.nbytes for _, array in tree_flatten(base.model.parameters())))
            save(beside, base.info.folder, base.model, base.tokenizer, config, donate_model=False)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # there only if something went wrong
    return folder


@contextmanager
def _merged(sites: Sequence[Site], adapter: Adapter, multiplier: float) -> Iterator[None]:
    """Inside the `with` every adapted layer has merged weights."""
    frozen = [site.module.linear.weight for site in sites]
    for site, (a, b, *magnitude), weight in zip(sites, adapter, frozen, strict=True):
        merged = weight.astype(mx.float32) + multiplier * (a @ b).swapaxes(-1, -2)
        if magnitude:
            merged = merged * (magnitude[0] / mx.linalg.norm(merged, axis=1))[:, None]
        site.module.linear.weight = merged.astype(weight.dtype)
    try:
        yield
    finally:
        for site, weight in zip(sites, frozen, strict=True):
            site.module.linear.weight = weight


@contextmanager
def _plain(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the `with` every adapted layer is the one that it was made from."""
    wrapped = [(block, [(n, m) for n, m in block.named_modules() if hasattr(m, "active")]) for block in blocks]
    for block, found in wrapped:
        block.update_modules(tree_unflatten([(name, module.linear) for name, module in found]))
    try:
        yield
    finally:
        for block, found in wrapped:
            block.update_modules(tree_unflatten(found))
