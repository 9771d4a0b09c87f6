"""PEFT's layout of an adapter and mlx_lm's: the same matrices, transposed and named otherwise, and the multiplier of
B·A written as α. Names and arrays only; PEFT itself is not needed.

PEFT divides α by r, or by √r with `use_rslora`; mlx_lm multiplies by `scale` as it is.
"""

import json
import math
import re
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from lora_core.errors import UserError

FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
SIDES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}  # mlx_lm's → PEFT's
ORIGIN = ("model_path", "model_fingerprint")  # of the base model, in mlx_lm's configuration as we write it
LAYER = re.compile(r"(?:.*?\.)??(?P<blocks>\w+)\.(?P<number>\d+)\.(?P<key>.+)")  # model.layers.3.self_attn.q_proj
# What an adapter of PEFT may ask for, and mlx_lm has no word for.
FOREIGN = (
    "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias", "modules_to_save", "layer_replication",
    "target_parameters", "trainable_token_indices", "alora_invocation_tokens", "use_qalora",
)  # fmt: skip

Tensors = dict[str, np.ndarray]
Config = dict[str, Any]


def is_number(value: Any) -> bool:
    """Whether a float can hold it: Python also reads true, NaN, Infinity and whole numbers of any length from JSON."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def shown(value: Any) -> str:
    """A setting as it stands in a file, for a message."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def modules_of(tensors: Tensors) -> list[str]:
    """The names of the layers that the tensors belong to."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))


def is_peft(tensors: Tensors) -> bool:
    return any(".lora_A." in name or ".lora_embedding_A" in name for name in tensors)


def to_peft(tensors: Tensors, config: Config, base: str) -> tuple[Tensors, Config]:
    """An adapter in mlx_lm's layout as PEFT's two files hold it; `base` is what `from_pretrained` finds the base
    model by. Raises UserError, with the reason, for what PEFT has no form of."""
    lora = config["lora_parameters"]
    if experts := sorted(name for name, tensor in tensors.items() if tensor.ndim > 2):
        raise UserError(
            f"{len(experts)} matrices belong to layers of experts ({experts[0]}), which transformers holds "
            "otherwise.\nFor PEFT, leave those layers out by lora_parameters.keys."
        )
    modules = modules_of(tensors)
    rslora = lora.get("scaling") == "alpha_over_sqrt_r"
    alpha = lora["scale"] * (math.sqrt(lora["rank"]) if rslora else lora["rank"])
    made = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "r": lora["rank"], "lora_alpha": _plain(alpha), "lora_dropout": lora.get("dropout", 0.0),
        "use_rslora": rslora, "use_dora": config.get("fine_tune_type") == "dora", **_targets(modules),
        "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True, "inference_mode": True,
    }  # fmt: skip
    return {peft_name(name): np.ascontiguousarray(tensor.T) for name, tensor in tensors.items()}, made


def peft_name(name: str) -> str:
    module, _, side = name.rpartition(".")
    return f"{PREFIX}{module}.{SIDES[side]}"


def _plain(alpha: float) -> float | int:
    """Without the last digits of a product of floats; whole where it is."""
    rounded = float(f"{alpha:.12g}")
    return int(rounded) if rounded.is_integer() else rounded


def _targets(modules: list[str]) -> Config:
    """Which layers have an adapter: so many blocks by so many keys, or by their full names where blocks differ."""
    found = [match for match in map(LAYER.fullmatch, modules) if match]
    keys, numbers = dict.fromkeys(m["key"] for m in found), sorted({int(m["number"]) for m in found})
    lists = sorted({m["blocks"] for m in found})
    if len(lists) == 1 and len(found) == len(modules) == len(keys) * len(numbers):
        return {"target_modules": list(keys), "layers_to_transform": numbers, "layers_pattern": lists[0]}
    return {"target_modules": modules, "layers_to_transform": None, "layers_pattern": None}


def from_peft(tensors: Tensors) -> Tensors:
    """PEFT's matrices in mlx_lm's layout. Raises UserError if there are others than A, B and DoRA's m."""
    made, other = {}, []
    for name, tensor in tensors.items():
        side = next((ours for ours, theirs in SIDES.items() if name.endswith(f".{theirs}")), None)
        if side is None or not name.startswith(PREFIX):
            other.append(name)
        else:
            module = name.removeprefix(PREFIX).removesuffix(f".{SIDES[side]}")
            made[f"{module}.{side}"] = np.ascontiguousarray(tensor.T)
    if other:
        raise UserError(
            f"{len(other)} of its tensors have no counterpart in mlx_lm ({min(other)}).\n"
            "Expected lora_A, lora_B and lora_magnitude_vector of linear layers alone."
        )
    return made


def mlx_config(config: Config, modules: Iterable[str]) -> Config:
    """PEFT's adapter_config.json as mlx_lm's, for an adapter on the `modules` of these names. Raises UserError for
    settings that mlx_lm has no word for."""
    _check_plain(config)
    rank, alpha, rslora = config["r"], config["lora_alpha"], bool(config.get("use_rslora"))
    found = [(LAYER.fullmatch(module), module) for module in modules]
    return {
        "fine_tune_type": "dora" if config.get("use_dora") else "lora",
        "num_layers": -1,  # all: a layer without weights here is left as it is
        "lora_parameters": {
            "rank": rank,
            "scale": alpha / (math.sqrt(rank) if rslora else rank),
            "dropout": config.get("lora_dropout", 0.0),
            "keys": list(dict.fromkeys(match["key"] if match else module for match, module in found)),
            "alpha": alpha,
            "scale_ratio": alpha / rank,
            "scaling": "alpha_over_sqrt_r" if rslora else "alpha_over_r",
            "dropout_on": "input",
        },
        "model": config.get("base_model_name_or_path"),
        **{key: config[key] for key in ORIGIN if key in config},
    }


def _check_plain(config: Config) -> None:
    if config.get("peft_type") != "LORA":
        raise UserError(f"peft_type is {config.get('peft_type')}: expected LORA.")
    if missing := [key for key in ("r", "lora_alpha") if config.get(key) is None]:
        raise UserError(f"Its adapter_config.json lacks {' and '.join(missing)}.")
    rank, alpha = config["r"], config["lora_alpha"]
    if type(rank) is not int or not is_number(rank) or rank < 1:
        raise UserError(f"Its adapter_config.json has r {shown(rank)}, expected a whole number above 0.")
    if not is_number(alpha) or alpha == 0:
        raise UserError(f"Its adapter_config.json has lora_alpha {shown(alpha)}, expected a finite number but 0.")
    for key in ("use_rslora", "use_dora"):
        if not isinstance(config.get(key), bool | None):
            raise UserError(f"Its adapter_config.json has {key} {shown(config[key])}, expected true or false.")
    asked = [key for key in FOREIGN if config.get(key)]
    asked += ["bias"] if config.get("bias", "none") != "none" else []
    start = config.get("init_lora_weights")
    # These begin by changing the base model's own weights.
    asked += ["init_lora_weights"] if str(start).startswith(("pissa", "olora", "corda", "loftq", "lora_ga")) else []
    if asked:
        said = ", ".join(f"{key}={config[key]}" for key in asked)
        raise UserError(f"Its adapter_config.json has {said[:200]}, which mlx_lm has no word for.")
