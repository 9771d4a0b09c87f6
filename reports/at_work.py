"""Whether somebody is at work on a study, which a search that was killed could not say any more."""

import fcntl
import os
import time
from pathlib import Path


def at_work(folder: Path) -> bool:
    """Whether a process holds the folder, as a search or a training does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        return all(_is_held(handle) for _ in range(3))
    finally:
        os.close(handle)


def _is_held(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError as error:  # some network drives know no locks
        time.sleep(0.01)  # another one may be looking, which takes no time
        return isinstance(error, BlockingIOError)
