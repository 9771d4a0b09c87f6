"""Room on the disk: whether there is enough for what is about to be written, and which errors say that there is not."""

import errno
import os
import re
import shutil
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # some disks, and some accounts, have room for small files only
# What the writers of MLX and safetensors, and SQLite, say of a write that failed; none of them raises an OSError.
_SAID = re.compile("|".join([r"Unable to write \d+ bytes", "database or disk is full", *map(os.strerror, _FULL)]))
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
    if not isinstance(error, OSError):
        return "no space left on the disk"
    where = "on the disk" if error.filename is None else f"in {os.fspath(error.filename)}"
    return f"no space left {where} ({error.strerror})"
