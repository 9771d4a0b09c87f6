"""What ends a search from outside: a disk without room, a database that does not answer."""

from optuna.exceptions import StorageInternalError

from lora_core import disk
from sweeps.connect import first_line


class Trouble(Exception):
    """The search cannot go on, by no fault of its own or of its input. The text says why, and how to go on."""


def cause_of(error: BaseException) -> str | None:
    """In a line what is wrong outside; None for a bug of ours."""
    if disk.is_full(error):
        return f"There is {disk.told(error)}."
    if isinstance(error, StorageInternalError):
        cause = error.__cause__ or error
        return f"The study's database failed: {first_line(cause)}."
    return None
