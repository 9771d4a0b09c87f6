"""An adapter on disk, a file of weights and `adapter_config.json` beside it, as NumPy arrays. Needs no MLX."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, TensorSpec, deserialize, safe_open, serialize_file

from lora_core import peft
from lora_core.config import TRAIN_TYPES
from lora_core.errors import UserError, first_line
from lora_core.records import ADAPTER, write_json

CONFIG = "adapter_config.json"
FILES = (CONFIG, ADAPTER)  # of which an adapter consists
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


@dataclass(frozen=True)
class Stored:
    """`named` so in what is said of it. `tensors` in mlx_lm's layout, float32. `config` is `adapter_config.json`, or
    empty if there is none; PEFT's has beside it what we have left with the weights of the base model."""

    named: str
    tensors: peft.Tensors
    config: dict[str, Any]
    is_peft: bool

    @property
    def mlx_config(self) -> dict[str, Any]:
        """What mlx_lm needs to know of it; raises UserError if it cannot be told."""
        if not self.config:
            raise UserError(f"It has no {CONFIG} beside it, which tells what multiplies B·A.")
        config = peft.mlx_config(self.config, self.modules) if self.is_peft else self.config
        _check_base_named(config)
        _check_method(config)
        if config.get("fine_tune_type") != "full":
            _check_parts(self.modules, self.tensors, config.get("fine_tune_type") == "dora")
            _check_parameters(config.get("lora_parameters"), self.tensors)
        return config

    @property
    def modules(self) -> list[str]:
        """The names of the layers that it belongs to."""
        return peft.modules_of(self.tensors)


def save_adapter(folder: Path, tensors: peft.Tensors, config: dict[str, Any]) -> str:
    """Writes an adapter in mlx_lm's layout, and returns the sha256 of its weights, which the configuration keeps.
    Tensors of uint16 are bfloat16, which NumPy does not have."""
    return _save(folder / ADAPTER, tensors, config, {"format": "mlx"})


def save_peft(folder: Path, tensors: peft.Tensors, config: dict[str, Any], base: str) -> None:
    """Writes the same in PEFT's layout. Raises UserError as `to_peft` does, which says what `base` is."""
    made, settings = peft.to_peft(tensors, config, base)
    _save(folder / peft.FILE, made, settings, {"format": "pt", **_origin(config)})


def _origin(told: Mapping[str, Any]) -> dict[str, str]:
    """What is told of the base model. PEFT warns of keys in its configuration that it does not know, and does not look
    at the metadata of the weights."""
    return {key: told[key] for key in peft.ORIGIN if told.get(key)}


def _save(file: Path, tensors: peft.Tensors, config: dict[str, Any], metadata: dict[str, str]) -> str:
    """Both files, each whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.part.safetensors")
    try:
        _write(tensors, beside, metadata)
        with beside.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
            os.fsync(written.fileno())
        known = {"sha256": digest} if metadata["format"] == "mlx" else {}
        write_json(file.parent / CONFIG, {**config, **known})
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)  # there only if something went wrong
    return digest


def _write(tensors: peft.Tensors, file: Path, metadata: dict[str, str]) -> None:
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    specs = {
        name: TensorSpec(
            dtype="bfloat16" if array.dtype == np.uint16 else array.dtype.name,
            shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes,
        )
        for name, array in arrays.items()
    }  # fmt: skip
    serialize_file(specs, file, metadata=metadata)


def read(path: str, named: str | None = None) -> Stored:
    """The adapter in a folder, or in a file of weights. Raises UserError, which begins with `named` (default: the
    path), if it is missing, damaged, changed since it was saved, not finite, or of no known layout."""
    named = named or path
    file = _file(Path(path), named)
    config = read_config(file.parent / CONFIG)
    content = file.read_bytes()
    if "sha256" in config and hashlib.sha256(content).hexdigest() != config["sha256"]:
        raise UserError(f"{named}: {file.name} is not the file that was saved: its sha256 is not that in {CONFIG}.")
    try:
        tensors = {name: _array(stored) for name, stored in deserialize(content)}
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{named} is not a safetensors file of floats: {error}") from None
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise UserError(f"{named} holds values that are not finite.")
    theirs = peft.is_peft(tensors)
    try:
        tensors = peft.from_peft(tensors) if theirs else tensors
        _check_pairs(tensors)
    except UserError as error:
        raise UserError(f"{named}: {error}") from None
    return Stored(named, tensors, config | _origin(_metadata(file)) if theirs else config, theirs)


def digest(path: str) -> str:
    """16 hex digits that change with the weights or the settings of the adapter at `path`. Raises UserError if there
    is none."""
    file = _file(Path(path), path)
    found = hashlib.sha256()
    for each in filter(Path.exists, (file, file.parent / CONFIG)):
        with each.open("rb") as content:  # of a whole model it may be as large as memory
            hashlib.file_digest(content, lambda: found)
    return found.hexdigest()[:16]


def _metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="numpy") as weights:
        return weights.metadata() or {}


def _check_pairs(tensors: dict[str, np.ndarray]) -> None:
    """Raises UserError unless each A has its B, of the same rank."""
    if not tensors:
        raise UserError("there are no weights in it.")
    for layer in sorted({name.rpartition(".lora_")[0] for name in tensors if name.endswith((".lora_a", ".lora_b"))}):
        a, b = tensors.get(f"{layer}.lora_a"), tensors.get(f"{layer}.lora_b")
        if a is None or b is None:
            raise UserError(f"{layer} has one of lora_a and lora_b, expected both.")
        known = a.ndim == b.ndim and a.ndim in (2, 3)  # of experts they are [E, r, in] and [E, out, r]
        if not known or a.shape[1] != b.shape[0 if a.ndim == 2 else 2]:
            raise UserError(f"{layer} has lora_a {list(a.shape)} and lora_b {list(b.shape)}, which share no rank.")


def _check_parts(modules: Iterable[str], tensors: dict[str, np.ndarray], dora: bool) -> None:
    """Raises UserError unless the layers have the parts of an adapter: A and B, and with DoRA a length for each row."""
    if unknown := sorted(name for name in tensors if name.rpartition(".")[2] not in peft.SIDES):
        raise UserError(f"{unknown[0]} is no part of an adapter, which has {', '.join(peft.SIDES)}.")
    for module in modules:
        lengths, b = tensors.get(f"{module}.m"), tensors.get(f"{module}.lora_b")
        if b is None:
            raise UserError(f"{module} has m alone, expected lora_a and lora_b with it.")
        if dora and (lengths is None or lengths.shape != b.shape[-1:]):
            found = "no m" if lengths is None else f"m {list(lengths.shape)}"
            raise UserError(f"{module} has {found}, expected m {list(b.shape[-1:])} with DoRA.")
        if not dora and lengths is not None:
            raise UserError(f"{module} has m, which only DoRA has, and this is said to be LoRA.")


def _check_method(config: dict[str, Any]) -> None:
    """Raises UserError unless it says, if it says so at all, what was trained, and in how many blocks."""
    kind, blocks = config.get("fine_tune_type", "lora"), config.get("num_layers", -1)
    if kind not in TRAIN_TYPES:
        raise UserError(f"Its {CONFIG} has fine_tune_type {peft.shown(kind)}, expected {', '.join(TRAIN_TYPES)}.")
    if type(blocks) is not int:
        raise UserError(f"Its {CONFIG} has num_layers {peft.shown(blocks)}, expected a whole number.")


def _check_parameters(lora: Any, tensors: dict[str, np.ndarray]) -> None:
    """Raises UserError unless `lora_parameters` has a scale, and the rank that the weights have, and is sound."""
    known = lora if isinstance(lora, dict) else {}
    scale, rank = known.get("scale"), known.get("rank")
    if not peft.is_number(scale):
        raise UserError(f"Its {CONFIG} has lora_parameters.scale {peft.shown(scale)}, expected a finite number.")
    ranks = {tensor.shape[1] for name, tensor in tensors.items() if name.endswith(".lora_a")}
    if type(rank) is not int or ranks - {rank}:
        found = ", ".join(map(str, sorted(ranks)))
        raise UserError(f"Its {CONFIG} has lora_parameters.rank {peft.shown(rank)}, its weights rank {found}.")
    dropout, keys = known.get("dropout", 0.0), known.get("keys")
    if not peft.is_number(dropout) or not 0 <= dropout < 1:
        raise UserError(f"Its {CONFIG} has the dropout {peft.shown(dropout)}, expected a number from 0 to below 1.")
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise UserError(f"Its {CONFIG} has lora_parameters.keys {peft.shown(keys)}, expected a list of names.")


def _check_base_named(config: dict[str, Any]) -> None:
    """Raises UserError unless what tells the base model, as far as it is there, is text."""
    for key in ("model", *peft.ORIGIN):
        if not isinstance(config.get(key), str | None):
            raise UserError(f"Its {CONFIG} has {key} {peft.shown(config[key])}, expected text.")


def check_base(config: dict[str, Any], fingerprint: str | None, named: str) -> None:
    """Raises UserError if an adapter with this `adapter_config.json` was trained on another base model."""
    own = config.get("model_fingerprint")
    if None not in (own, fingerprint) and own != fingerprint:
        raise UserError(
            f"{named} was trained on another base model: {config.get('model_path')} "
            f"(fingerprint {own}, here {fingerprint})."
        )


def _file(path: Path, named: str) -> Path:
    candidates = [path / ADAPTER, path / peft.FILE] if path.is_dir() else [path]
    found = [file for file in candidates if file.is_file()]
    if not found:
        what = "holds no adapter" if path.is_dir() else "does not exist"
        hint = f" Did you mean {path / 'adapters'}?" if (path / "adapters").is_dir() else ""
        raise UserError(f"{named} {what}: expected {ADAPTER}, {peft.FILE} or the folder that holds one.{hint}")
    return found[0]


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a JSON file; none if there is no such file. Raises UserError if it holds something else."""
    try:
        config = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg}).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8 ({error.reason} at byte {error.start}).") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets in …
        raise UserError(f"{path}: no settings that can be read ({first_line(error)}).") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds {peft.shown(config)}, expected settings in {{…}}.")
    return config


def _array(stored: dict[str, Any]) -> np.ndarray:
    """float32; NumPy has no bfloat16, which is the upper half of one."""
    array = np.frombuffer(stored["data"], dtype=DTYPES[stored["dtype"]]).reshape(stored["shape"])
    if stored["dtype"] == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)
