"""Base models in fewer bits: `quantization`, made once by mlx_lm's own quantiser and kept in the cache."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from lora_core.config import QUANTIZATIONS
from lora_core.errors import UserError
from lora_core.models import cache

VERSION = 1  # part of the cache's key: raise it when the same model quantises differently


def folder_of(folder: Path, quantization: str, group_size: int | None) -> tuple[Path, list[str]]:
    """The folder of the same model in fewer bits, made at the first call, and lines to show. A model that has these
    bits already is left alone. Raises UserError for one that has others, or that cannot be quantised so."""
    bits, mode, default = QUANTIZATIONS[quantization]
    wanted = {"bits": bits, "group_size": group_size or default, "mode": mode}
    if found := _found(folder):
        _check_same(folder, found, quantization, wanted)
        return folder, [f"The model is quantised already ({_shown(wanted)}) and left as it is."]
    key = f"{cache.fingerprint(folder)[:12]}-g{wanted['group_size']}-v{VERSION}"
    made, built = cache.built_once(f"{folder.name}-{quantization}", key, lambda part: _build(folder, part, wanted))
    return made, [f"Quantised to {_shown(wanted)} once: {made}."] if built else []


def requantise(folder: Path, quantization: str) -> float:
    """Puts the model in `folder`, in full precision, in fewer bits; the folder is replaced whole.

    Returns |W' - W| / |W| over the layers that have fewer then. Raises UserError if no layer can.
    """
    bits, mode, size = QUANTIZATIONS[quantization]
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        _build(folder, beside, {"bits": bits, "group_size": size, "mode": mode})
        error = _distance(folder, beside)
        shutil.rmtree(folder)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # there only if something went wrong
    return error


def _distance(whole: Path, few: Path) -> float:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import dequantize_model

    from lora_core.models.loading import load_checked

    model = load_checked(few)[0]
    names = [f"{name}.weight" for name, module in model.named_modules() if hasattr(module, "bits")]
    after, before = (
        dict(tree_flatten(each.parameters())) for each in (dequantize_model(model), load_checked(whole)[0])
    )
    del model  # so that each weight can go once it has been looked at
    lost = size = 0.0
    for name in names:
        own = before.pop(name).astype(mx.float32)
        lost += mx.square(after.pop(name).astype(mx.float32) - own).sum().item()
        size += mx.square(own).sum().item()
    return math.sqrt(lost / size)


def _found(folder: Path) -> dict[str, Any] | None:
    """What config.json says of the quantisation that the model has."""
    config = json.loads((folder / "config.json").read_text())
    return config.get("quantization") or config.get("quantization_config")


def _check_same(folder: Path, found: dict[str, Any], quantization: str, wanted: dict[str, Any]) -> None:
    has = {"mode": "affine", **{key: found[key] for key in wanted if key in found}}
    if has != wanted:
        raise UserError(
            f"quantization={quantization} means {_shown(wanted)}, and the model in {folder} is quantised already "
            f"({_shown(has)}).\nLeave quantization at null to train it as it is, or give a model in full precision."
        )


def _shown(values: dict[str, Any]) -> str:
    bits = "mxfp4" if values["mode"] == "mxfp4" else f"{values.get('bits', '?')} bits"
    return f"{bits}, group size {values.get('group_size', '?')}"


def _build(folder: Path, part: Path, wanted: dict[str, Any]) -> None:
    from mlx_lm.utils import load_tokenizer, quantize_model, save

    from lora_core.models.loading import bits_of, load_checked

    model, config = load_checked(folder)
    model, config = quantize_model(model, config, **wanted)
    if bits_of(model) is None:
        raise UserError(f"{folder}: no layer's width is a multiple of quantization_group_size={wanted['group_size']}.")
    try:
        save(part, str(folder), model, load_tokenizer(folder, {"trust_remote_code": False}), config)
    except RuntimeError as error:  # the disk is full
        raise OSError(str(error)) from error
