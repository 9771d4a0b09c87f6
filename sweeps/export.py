"""`lora-sweep export ADAPTER --format peft|mlx`: the same adapter in the files of another program."""

import argparse
import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lora_core.adapter_folder import Stored, read, save_adapter, save_peft
from lora_core.errors import UserError
from lora_core.models.sources import HUB_ID
from lora_core.peft import to_peft
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
        base = shlex.join(["--model", str(stored.config.get("model")), "--adapter-path", str(found.folder)])
        raise UserError(
            f"{found.name} was trained with train_type=full: it has no adapter, but weights of the model itself.\n"
            f"mlx_lm loads them as they are: {base}\n"
            "transformers loads the merged model, which fuse=true writes."
        )


def _to_mlx(stored: Stored, out: Path) -> list[str]:
    config = stored.mlx_config
    save_adapter(out, stored.tensors, config)
    words = ["mlx_lm.generate", "--model", str(config.get("model")), "--adapter-path", str(out)]
    return [typed(shlex.join(words)) + ' --prompt "…"']


def _to_peft(stored: Stored, out: Path) -> list[str]:
    config = stored.mlx_config
    base = _hub_id(config) or str(config.get("model"))
    tensors, made = to_peft(stored.tensors, config, base)
    notes = _notes(config, base, {name.rpartition(".")[0] for name in stored.tensors})
    save_peft(out, tensors, made)
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


def _hub_id(config: dict[str, Any]) -> str | None:
    """What the base model is called on the hub, so that the adapter finds it on other machines too."""
    path = str(config.get("model_path") or "")
    return path if HUB_ID.fullmatch(path) and not Path(path).exists() else None


def _notes(config: dict[str, Any], base: str, modules: Iterable[str]) -> list[str]:
    """What is worth knowing of the adapter in PEFT. Raises UserError if transformers has other names for its layers."""
    lora, notes = config["lora_parameters"], []
    if lora.get("dropout") and lora.get("dropout_on") == "delta":
        notes.append(
            "Trained with dropout on ΔW·x; PEFT, should it train on, drops entries of x. Answers are the same."
        )
    folder = Path(str(config.get("model")))
    known = _names_of(folder)
    if not known:
        notes.append(f"The base model is not at {folder}, so the names of its layers were not compared.")
    elif unknown := sorted(module for module in modules if f"{module}.weight" not in known):
        raise UserError(
            f"{len(unknown)} layers are not in the files of its base model by these names ({unknown[0]}), "
            "and so not in transformers either."
        )
    elif base == str(folder) and "quantization" in json.loads((folder / "config.json").read_text()):
        notes.append("The base model is quantised in MLX's own way: give transformers its original.")
    return notes


def _names_of(folder: Path) -> set[str]:
    """The names of all tensors of the model in `folder`; none if there is no model."""
    names: set[str] = set()
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="numpy") as weights:
            names.update(weights.keys())
    return names
