"""Merges an adapter into its base: W = W₀ + s·(A·B)ᵀ, saved as a model folder that mlx_lm loads.

A quantised base is dequantised, all of it: in few bits a small ΔW would be lost."""

import copy
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import dequantize_model, load_config, save

from lora_core.adapter_files import Adapter
from lora_core.adapters import Site
from lora_core.disk import check_room
from lora_core.layers import Weights, gain_of
from lora_core.models import Base
from lora_core.split import dtype_of


def fuse(folder: Path, base: Base, blocks: Sequence[nn.Module], sites: Sequence[Site],
         adapter: Adapter, multiplier: float) -> float:  # fmt: skip
    """Writes the merged model to `folder` (replaced whole) in the dtype the base was trained in.

    Returns |W - (W₀ + ΔW)| / |ΔW| over all adapted layers, W as written: what rounding to that dtype took. Raises
    OSError where there is no room for the model; nothing is left of it then.
    """
    with _merged(sites, adapter, multiplier, dtype_of(base.model)) as error:
        write_model(folder, base, blocks)
    return error


def write_model(folder: Path, base: Base, blocks: Sequence[nn.Module]) -> None:
    """Writes the model as it is, dequantised and without room for adapters, to `folder` (replaced whole)."""
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    config = load_config(Path(base.info.folder))
    for key in ("quantization", "quantization_config"):
        config.pop(key, None)
    try:
        with _plain(blocks), _dequantised(base.model):
            check_room(folder, sum(array.nbytes for _, array in tree_flatten(base.model.parameters())))
            save(beside, base.info.folder, base.model, base.tokenizer, config, donate_model=False)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # there only if something went wrong


@contextmanager
def _merged(
    sites: Sequence[Site], adapter: Adapter, multiplier: float, dtype: mx.Dtype
) -> Iterator[float]:  # fmt: skip
    """Inside the `with` every adapted layer is a dense one with merged weights; gives the error of `fuse`. `dtype` is
    for layers that are quantised: of some kinds (mxfp4) one cannot tell what they were made from."""
    frozen = [site.module.linear for site in sites]
    lost = changed = 0.0
    try:
        for site, weights in zip(sites, adapter, strict=True):
            linear = _dense(site.module.linear, dtype)
            base = linear.weight.astype(mx.float32)
            exact = _sum(base, weights, multiplier)
            linear.weight = exact.astype(linear.weight.dtype)
            lost += _squares(linear.weight.astype(mx.float32) - exact)
            changed += _squares(exact - base)
            site.module.linear = linear
        yield math.sqrt(lost / changed) if changed else 0.0
    finally:
        for site, linear in zip(sites, frozen, strict=True):
            site.module.linear = linear


def _dense(linear: nn.Module, dtype: mx.Dtype) -> nn.Module:
    """The same layer, dequantised, whose weight can be set without the other's being set."""
    if not hasattr(linear, "bits"):
        return copy.copy(linear)
    holder = nn.Module()
    holder.layer = linear
    dense = dequantize_model(holder).layer
    dense.weight = dense.weight.astype(dtype)
    return dense


def _sum(base: mx.array, weights: Weights, multiplier: float) -> mx.array:
    """W₀ + ΔW, with DoRA each row at its learned length."""
    a, b, *magnitude = weights
    merged = base + multiplier * (a @ b).swapaxes(-1, -2)
    return merged * gain_of(magnitude[0], mx.linalg.norm(merged, axis=1))[:, None] if magnitude else merged


def _squares(difference: mx.array) -> float:
    return mx.square(difference).sum().item()


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


@contextmanager
def _dequantised(model: nn.Module) -> Iterator[None]:
    """Inside the `with` the model has no quantised layer."""
    quantised = [(name, module) for name, module in model.named_modules() if hasattr(module, "bits")]
    dequantize_model(model)
    try:
        yield
    finally:
        model.update_modules(tree_unflatten(quantised))
