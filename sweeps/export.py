"""`lora-sweep export ADAPTER --format peft|mlx`: the same adapter in the files of another program."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lora_core.adapter_folder import Stored, check_base, read, read_config, save_adapter, save_peft
from lora_core.config import loads_in_mlx_lm
from lora_core.errors import UserError
from lora_core.models import resolve
from lora_core.models.cache import fingerprint
from lora_core.models.sources import HUB_ID, located
from lora_core.peft import shown
from reports.wording import typed
from sweeps.pick import Picked, pick

LOADED = "In Python: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), {folder!r})"


def main(argv: list[str]) -> int:
    """Writes the files and says what loads them. Raises UserError for what the format has no form of."""
    given = _arguments(argv)
    found = pick(Path(given.output_dir), given.adapter)
    out = (given.out or found.folder / given.format).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty. Remove it, or give another folder by --out DIR.")
    stored = read(str(found.folder))
    _check_adapter(stored, found)
    try:
        lines = _to_peft(stored, out) if given.format == "peft" else _to_mlx(stored, out)
    except UserError as error:
        raise UserError(f"{found.name}: {error}") from None
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}.") from None
    print("\n  ".join([f"{found.name} for {given.format}: {out}", *lines]))
    return 0


def _check_adapter(stored: Stored, found: Picked) -> None:
    """Raises UserError for weights of the model itself, and says what they are good for as they are."""
    if stored.config.get("fine_tune_type") == "full":
        raise UserError(
            f"{found.name} was trained with train_type=full: it has no adapter, but weights of the model itself.\n"
            f"mlx_lm loads them as they are: {_answering(stored.config, found.folder)}\n"
            "transformers loads the merged model, which fuse=true writes."
        )


def _to_mlx(stored: Stored, out: Path) -> list[str]:
    config, notes = stored.mlx_config, []
    if "sha256" not in stored.config:  # else it is as it was when the model's own layers had it
        notes = _layers_compared(stored, config, "mlx_lm")
    command = _answering(config, out)  # before anything is written: it may find the base model damaged
    _check_origin(stored)
    save_adapter(out, stored.tensors, config)
    return [command, *notes]


def _answering(config: dict[str, Any], adapter: Path) -> str:
    """The command by which mlx_lm answers with the adapter, or why there is none."""
    bits = _bits(Path(str(config.get("model"))))
    if not loads_in_mlx_lm(config.get("fine_tune_type", "lora"), bits):
        return f"mlx_lm cannot load DoRA over the {bits} bits of its base model, but the merged one, by fuse=true."
    words = ["mlx_lm.generate", "--model", str(config.get("model") or "MODEL"), "--adapter-path", str(adapter)]
    return typed(shlex.join(words)) + ' --prompt "…"'


def _to_peft(stored: Stored, out: Path) -> list[str]:
    config = stored.mlx_config
    base = _base(config)
    notes = _layers_compared(stored, config, "transformers")
    lora = config["lora_parameters"]
    if lora.get("dropout") and lora.get("dropout_on") == "delta":
        notes.append(
            "Trained with dropout on ΔW·x; PEFT, should it train on, drops entries of x. Answers are the same."
        )
    if _bits(Path(str(config.get("model")))):
        is_original = Path(base).is_dir() and not _bits(Path(base))
        what = "this names its original" if is_original else "give transformers its original"
        notes.append(f"The base model is quantised in MLX's own way: {what}.")
    _check_origin(stored)
    save_peft(out, stored.tensors, config, base)
    return [LOADED.format(base=base, folder=str(out)), *notes]


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="lora-sweep export", description="Write an adapter as PEFT, or as mlx_lm, has it: from either's files."
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="STUDY for its winner, STUDY/TRIAL, or an adapter's folder")
    parser.add_argument("--format", choices=("peft", "mlx"), required=True, help="whose files to write")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="a new folder (default: peft/ or mlx/ in the adapter's)"
    )
    parser.add_argument("--output-dir", default="outputs", metavar="DIR", help="where studies lie (default: outputs)")
    return parser.parse_args(argv)


def _base(config: dict[str, Any]) -> str:
    """Where transformers is to find the base model: on the hub, so that other machines do too, in the folder that was
    given or was made of what was given, which may have been quantised since, or where mlx_lm has it."""
    path = str(config.get("model_path") or "")
    if HUB_ID.fullmatch(path) and not located(path).exists():
        return path
    try:
        return str(resolve(path)) if path else str(config.get("model"))
    except UserError:
        return str(config.get("model"))


def _layers_compared(stored: Stored, config: dict[str, Any], program: str) -> list[str]:
    """Raises UserError if the base model lacks layers of the adapter, or has them in another width; a line to show if
    that cannot be told. Layers of experts, which have no common names, are left to `to_peft` and mlx_lm."""
    folder = Path(str(config.get("model")))
    known = _shapes_of(folder)
    if not known:
        return [f"The base model is not at {folder}, so its layers were not compared."]
    if unlike := sorted(each for each in stored.modules if not _fits(each, stored.tensors, known)):
        raise UserError(
            f"The files of its base model lack {len(unlike)} of its layers, or have them in other widths "
            f"({unlike[0]}), and so does {program}."
        )
    return []


def _fits(module: str, tensors: dict[str, Any], known: dict[str, list[int]]) -> bool:
    """Whether the model's weight of this name is as wide as A and B are; in few bits its rows are packed."""
    a, b = tensors[f"{module}.lora_a"], tensors[f"{module}.lora_b"]
    if a.ndim > 2:
        return True
    inputs, outputs = a.shape[0], b.shape[1]
    found = known.get(f"{module}.weight", [])
    return found == [outputs, inputs] or (found[:1] == [outputs] and f"{module}.scales" in known)


def _shapes_of(folder: Path) -> dict[str, list[int]]:
    """Of all tensors of the model in `folder`; none if there is no model. Raises UserError if a file is damaged."""
    shapes: dict[str, list[int]] = {}
    for file in folder.glob("model*.safetensors"):
        try:
            with safe_open(file, framework="numpy") as weights:
                shapes.update({name: weights.get_slice(name).get_shape() for name in weights.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"its base model is damaged, {file}: {error}.") from None
    return shapes


def _check_origin(stored: Stored) -> None:
    """Raises UserError where the base model, if it is there, has changed since. PEFT's files may name the original of
    a quantised one."""
    folder = Path(str(stored.config.get("model")))
    if not stored.is_peft and (folder / "config.json").is_file():
        check_base(stored.config, fingerprint(folder), "the adapter")


def _bits(folder: Path) -> int | None:
    """Of the model in `folder`; None where it is not quantised, or not there. Raises UserError if it does not tell."""
    file = folder / "config.json"
    quantization = read_config(file).get("quantization") or {}
    if not isinstance(quantization, dict):
        raise UserError(f"{file} has quantization {shown(quantization)}, expected settings in {{…}}.")
    return quantization.get("bits")
