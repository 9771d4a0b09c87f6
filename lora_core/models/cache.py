"""Folders that are built once and kept: `$LORA_SWEEP_CACHE`, or ~/.cache/lora-sweep/models."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from lora_core.errors import UserError

FULL_DIGEST_BELOW = 2_000_000_000  # bytes; of a bigger file only the ends are read
END = 1_000_000


def root() -> Path:
    named = os.environ.get("LORA_SWEEP_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "lora-sweep" / "models"


def built_once(name: str, key: str, build: Callable[[Path], None]) -> tuple[Path, bool]:
    """The folder `name`-`key` of the cache, filled by `build(folder)` if it is not there yet.

    Built beside, synced and renamed: whoever sees the folder sees all of it, and of two processes that build
    at once one keeps its work. Returns the folder and whether it had to be built. Raises UserError if the
    cache cannot be written.
    """
    folder = root() / f"{name}-{key}"
    if folder.is_dir():
        return folder, False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root(), prefix=".part-", ignore_cleanup_errors=True) as part:
            build(Path(part))
            _sync(Path(part))
            _rename(Path(part), folder)
    except OSError as error:
        raise UserError(
            f"Cannot write the model cache {root()}: {error.strerror or error}.\n"
            "Set LORA_SWEEP_CACHE to a folder on a disk with room."
        ) from error
    return folder, True


def _sync(folder: Path) -> None:
    folder.chmod(0o755)  # temporary folders are closed to other users
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _rename(part: Path, folder: Path) -> None:
    try:
        part.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster, with the same content
            raise


def digest(path: Path) -> str:
    """sha256 of the file's size and content; of its first and last MB where it is 2 GB or more."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size < FULL_DIGEST_BELOW:
            content = hashlib.file_digest(file, "sha256").digest()
        else:
            content = file.read(END)
            file.seek(-END, os.SEEK_END)
            content += file.read()
    return hashlib.sha256(f"{size}:".encode() + content).hexdigest()


def fingerprint(folder: Path) -> str:
    """16 hex digits that change with config.json or any weight file of the model in `folder`."""
    total = hashlib.sha256()
    for path in (folder / "config.json", *sorted(folder.glob("model*.safetensors"))):
        total.update(f"{path.name}:{digest(path)}\n".encode())
    return total.hexdigest()[:16]
