"""A run's adapters by the names and in the layout of stock mlx_lm.

mlx_lm multiplies B·A by `scale` itself, so `scale` there is our multiplier; α, α/r and the scaling stand beside it.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from lora_core.adapter_folder import Stored, check_base
from lora_core.adapters import Site
from lora_core.config import TrainConfig
from lora_core.errors import UserError
from lora_core.layers import ExpertLora, Weights
from lora_core.models.sources import located
from lora_core.records import ModelInfo
from lora_core.split import Split

SIDES = ("lora_a", "lora_b", "m")  # mlx_lm's names of what a layer learns, the last one with DoRA
Adapter = Sequence[Weights]  # A [in, r], B [r, out], and with DoRA m [out], by site


def adapter_config(config: TrainConfig, sites: Sequence[Site], model: ModelInfo) -> dict[str, Any]:
    """What `mlx_lm.load` needs to rebuild the layers, what a reader wants to know, and what base it is for."""
    lora, base = config.lora_parameters, located(model.path)
    common = {
        "fine_tune_type": config.train_type, "num_layers": model.depth - config.bottom(model.depth),
        "model": model.folder, "model_path": str(base) if base.exists() else model.path,
        "model_fingerprint": model.fingerprint,
    }  # fmt: skip
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


def load_adapter(
    stored: Stored, split: Split, sites: Sequence[Site], rank: int, dora: bool = False, base: str | None = None
) -> list[Weights]:
    """What was learned, by site, by an adapter of ours, mlx_lm's or PEFT's; every name and shape must be as this run
    makes them, and where it says for what base model it is, that must be the one of fingerprint `base`.

    Raises UserError if it differs, with the differences.
    """
    tensors = load_tensors(stored, _expected(split, sites, rank, dora), base)
    return [weights_of(tensors, f"{split.block_name(site.layer)}.{site.key}", site) for site in sites]


def load_tensors(stored: Stored, shapes: dict[str, tuple[int, ...]], base: str | None) -> dict[str, np.ndarray]:
    """Its tensors, if they are those named in `shapes`; raises UserError as `load_adapter` says."""
    check_base(stored.config, base, stored.named)
    differences = _differences({name: t.shape for name, t in stored.tensors.items()}, shapes)
    if differences:
        raise UserError(f"{stored.named} does not fit this run: " + "; ".join(differences))
    return stored.tensors


def weights_of(tensors: dict[str, np.ndarray], name: str, site: Site) -> Weights:
    """Those of the layer of this name, if there are any, as we hold them."""
    found = [mx.array(tensors[f"{name}.{side}"]) for side in SIDES if f"{name}.{side}" in tensors]
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
