"""Room on the disk: whether there is enough for what is about to be written, which errors say that there is not, and
what a process that was killed has left."""

import errno
import os
import re
import shutil
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

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


def scratch(parent: Path, name: str) -> TemporaryDirectory[str]:
    """A folder in `parent` that goes with this process: if it is killed, by `remove_orphans`."""
    return TemporaryDirectory(dir=parent, prefix=f"{_ours(name)}{os.getpid()}-", ignore_cleanup_errors=True)


def remove_orphans(parent: Path, name: str) -> None:
    """Removes what `scratch` has made in `parent` by that name for processes of this machine that are gone."""
    for folder in parent.glob(f"{name}*"):
        match = re.match(rf"{re.escape(_ours(name))}(\d+)-", folder.name)
        if match and not _runs(int(match[1])):
            shutil.rmtree(folder, ignore_errors=True)


def _ours(name: str) -> str:
    """On a network drive there may be folders of other machines, whose processes cannot be looked at from here."""
    return f"{name}{socket.gethostname()}-"


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True
