"""Where rows come from: what `data.path` means, and what lies there, checked and split."""

import importlib
import importlib.util
import os
import re
from pathlib import Path

import numpy as np

from lora_core.config import DataConfig
from lora_core.data_rows import EXPECTED, Example, Examples, check_has_prompts, parse_line, to_example
from lora_core.errors import UserError, first_line, near

BUILTIN = {"builtin:demo": Path(__file__).parent / "demo"}
SPLITS = ("train", "valid", "test")


def read_data(config: DataConfig, seed: int) -> tuple[Examples, list[str]]:
    """The checked rows of each split (train, valid and perhaps test) and notes; needs no tokenizer."""
    source = _local(config.path)
    if source is None:
        splits = _from_hub(config.path)
    elif source.is_dir():
        splits = {name: _read_file(source / f"{name}.jsonl") for name in _names_in(source, config)}
    else:
        splits = {"train": _read_file(source)}
    if config.mask_prompt:
        check_has_prompts(splits)
    notes = [] if "valid" in splits else [_split(splits, config, seed)]
    return splits, notes


def _local(path: str) -> Path | None:
    """The file or folder that `path` means, or None where it can only be a Hugging Face id."""
    if path.startswith("builtin:"):
        if path not in BUILTIN:
            raise UserError(f"data.path={path}: expected {', '.join(BUILTIN)}.{near(path, BUILTIN)}")
        return BUILTIN[path]
    try:
        local = Path(path).expanduser()
        return local if _usable(path, local) else None
    except (OSError, RuntimeError) as error:  # no permission, a name too long, no home folder of that user
        raise UserError(f"data.path={path[:200]} cannot be read: {error}.") from None


def _usable(path: str, local: Path) -> bool:
    """True for a folder or a .jsonl file, False for a Hugging Face id, an error for anything else."""
    if local.is_dir() or (local.is_file() and local.suffix == ".jsonl"):
        return True
    if local.exists():
        raise UserError(f"data.path={path} is neither a folder nor a .jsonl file (one JSON object a line).")
    like_an_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) and local.suffix != ".jsonl"
    if like_an_id and not local.parent.exists():
        return False
    beside = os.listdir(local.parent) if local.parent.is_dir() else []
    raise UserError(
        f"data.path={path}: there is no such file or folder.{near(local.name, beside)}\n"
        "Expected a folder with train.jsonl and valid.jsonl, a .jsonl file, or a Hugging Face id: owner/name."
    )


def _names_in(folder: Path, config: DataConfig) -> list[str]:
    """The splits of a folder, which must have train and valid."""
    found = sorted(path.name for path in folder.glob("*.jsonl"))
    for name in ("train.jsonl", "valid.jsonl"):
        if name in found:
            continue
        has = f"It has {', '.join(found[:5])}." if found else "It has no .jsonl file."
        message = f"data.path={config.path}: the folder has no {name}. {has}{near(name, found)}"
        if "train.jsonl" in found:
            message += (
                f"\nTo validate on a share of the training rows (data.valid_fraction="
                f"{config.valid_fraction:g}): data.path={folder}/train.jsonl"
            )
        raise UserError(message)
    return [name for name in SPLITS if f"{name}.jsonl" in found]


def _split(splits: Examples, config: DataConfig, seed: int) -> str:
    """Moves a share of the training rows, chosen by `seed`, to validation; both keep their order."""
    rows = splits["train"]
    if len(rows) < 2:
        raise UserError(f"data.path={config.path}: one row alone cannot be split for validation.")
    size = min(max(1, round(len(rows) * config.valid_fraction)), len(rows) - 1)
    # A spawn key of its own keeps this choice independent of the other draws made from the same seed.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    chosen = set(rng.permutation(len(rows))[:size].tolist())
    splits["train"] = [row for i, row in enumerate(rows) if i not in chosen]
    splits["valid"] = [row for i, row in enumerate(rows) if i in chosen]
    return (
        f"data: {len(rows)} rows split into {len(rows) - size} for training and {size} for validation "
        f"(data.valid_fraction={config.valid_fraction:g}, seed={seed})"
    )


def _from_hub(path: str) -> Examples:
    """The splits of a Hugging Face dataset. A hub out of reach is an error after seconds, not a wait."""
    told = f"data.path={path} is no file or folder here, so it is read as a Hugging Face id"
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f"{told},\nwhich needs the package datasets: uv pip install datasets")
    try:
        if not {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"} & set(os.environ):
            importlib.import_module("huggingface_hub").HfApi().dataset_info(path, timeout=10)
        found = importlib.import_module("datasets").load_dataset(path)
    except Exception as error:  # the two packages raise a dozen unrelated kinds for "not there"
        raise UserError(f"{told},\nbut it could not be loaded: {first_line(error)[:200]}") from None
    names = {"train": "train", "valid": "valid", "validation": "valid", "test": "test"}
    splits = {
        names[name]: [to_example(f"{path}:{name}:{i}", dict(row)) for i, row in enumerate(rows, 1)]
        for name, rows in found.items()
        if name in names and len(rows)
    }
    if "train" not in splits:
        raise UserError(f"data.path={path} has no split train: found {', '.join(found)}.")
    return splits


def _read_file(path: Path) -> list[Example]:
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    examples = [parse_line(f"{path}:{i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    if not examples:
        raise UserError(f"{path} is empty: expected one JSON object a line.\n{EXPECTED}")
    return examples
