"""Room on the disk: whether there is enough for what is about to be written, and which errors say that there is not."""

import errno
import os
import re
import shutil
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What the writers of MLX and safetensors, and SQLite, say of a write that failed; none of them raises an OSError.
_SAID = re.compile(r"Unable to write \d+ bytes|No space left on device|database or disk is full")
MARGIN = 1.05  # names, indices and whatever else goes along with the numbers


def check_room(folder: Path, size: int) -> None:
    """Raises OSError where less than `size` bytes and a margin are free in `folder`, or in the nearest one above it
    that exists: half a model would be worth nothing."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    needed, free = int(size * MARGIN), shutil.disk_usage(place).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB are free", str(place))


def is_full(error: BaseException) -> bool:
    """Whether the error says that a disk has no room left."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return _SAID.search(str(error)) is not None


def told(error: BaseException) -> str:
    """The error of a full disk in words."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"no space left in {os.fspath(error.filename)} ({error.strerror})"
    return "no space left on the disk"
