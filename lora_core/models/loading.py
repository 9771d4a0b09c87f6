"""Loads an MLX model folder: frozen, in the dtype this device trains in, described by a `ModelInfo`."""

from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import dequantize_model, get_total_parameters, load_model, load_tokenizer

from lora_core import backend
from lora_core.errors import UserError
from lora_core.models import Base
from lora_core.models.cache import fingerprint
from lora_core.records import ModelInfo

LINEAR = (nn.Linear, nn.QuantizedLinear, SwitchLinear, QuantizedSwitchLinear)


def load_folder(folder: Path, path: str) -> Base:
    """`path` is what the user wrote. Raises UserError if mlx_lm cannot load the folder."""
    model, config = load_checked(folder)
    tokenizer = _load_tokenizer(folder, config)
    bits = bits_of(model)
    notes = _to_train_dtype(model, bits)
    model.freeze()
    mx.eval(model.parameters())
    info = ModelInfo(
        path=path,
        folder=str(folder),
        kind=config["model_type"],
        depth=len(model.layers),
        linear_keys=linear_keys(model),
        parameters=get_total_parameters(model),
        dtype=_dtype_name(model),
        fingerprint=fingerprint(folder),
        bits=bits,
    )
    return Base(model, tokenizer, info, notes)


def load_checked(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model and its config.json. Raises UserError if mlx_lm cannot load the folder."""
    try:
        return load_model(folder, lazy=True)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
        raise UserError(f"{folder}: mlx_lm cannot load this model: {_short(error)}") from error


def _load_tokenizer(folder: Path, config: dict[str, Any]) -> TokenizerWrapper:
    # Said explicitly, because transformers otherwise asks at the terminal when a tokenizer brings code.
    extra = {"trust_remote_code": False}
    try:
        return load_tokenizer(folder, extra, eos_token_ids=config.get("eos_token_id"))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError, ImportError) as error:
        raise UserError(f"{folder}: the tokenizer cannot be loaded: {_short(error)}") from error


def _short(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    name = "missing key " if isinstance(error, KeyError) else ""
    return name + " ".join(text.split())[:200]


def _to_train_dtype(model: nn.Module, bits: int | None) -> list[str]:
    """Casts and, on CPU, dequantises the parameters in place; returns what was done, in lines to show."""
    notes = []
    if bits and backend.is_cpu():
        model.set_dtype(mx.float32)  # the scales first, so that the weights are exact
        dequantize_model(model)
        notes.append(f"CPU: the {bits}-bit base is dequantised and trained in float32.")
    found = _dtype(model)
    if any(backend.train_dtype(dtype) != dtype for dtype in _floating_sizes(model)):
        model.set_dtype(backend.train_dtype(found))
        if not bits:
            notes.append(f"CPU: the {_name(found)} base is trained in {_name(_dtype(model))}.")
    return notes


def bits_of(model: nn.Module) -> int | None:
    """Bits of the quantised layers, or None if there are none."""
    return next((module.bits for _, module in model.named_modules() if hasattr(module, "bits")), None)


def _floating_sizes(model: nn.Module) -> Counter[mx.Dtype]:
    sizes: Counter[mx.Dtype] = Counter()
    for value in dict(tree_flatten(model.parameters())).values():
        if mx.issubdtype(value.dtype, mx.floating):
            sizes[value.dtype] += value.size
    return sizes


def _dtype(model: nn.Module) -> mx.Dtype:
    """The floating dtype that most values have."""
    return _floating_sizes(model).most_common(1)[0][0]


def _dtype_name(model: nn.Module) -> str:
    bits = bits_of(model)
    return f"{bits}-bit" if bits else _name(_dtype(model))


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def linear_keys(model: nn.Module) -> list[str]:
    """Block-relative names of every layer that an adapter can sit on, in the order in which blocks hold them.

    Blocks may differ (dense and expert ones, attention and convolution): the names of all are joined.
    """
    keys: dict[str, None] = {}
    for block in model.layers:
        found = [name for name, module in block.named_modules() if isinstance(module, LINEAR)]
        keys.update(dict.fromkeys(reversed(found)))  # named_modules goes through children from last to first
    return list(keys)
