"""What `lora-sweep stop` asks of the process at work on a study: a small file in the study's folder.

A file, and not a signal, because the process may be on another machine that shares the folder. To machines that do not,
that process passes it on.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from lora_core.records import write_json

STOPPED = "stopped by hand"
_FILE = "stop.json"


@dataclass
class StopRequest:
    """`trials`: names of trials to end; `study`: stop altogether, as one Ctrl-C would."""

    trials: list[str]
    study: bool = False


def ask_to_stop(folder: Path, trial: str | None) -> None:
    """Adds to what was asked before."""
    request = read_request(folder) or StopRequest([])
    if trial is None:
        request.study = True
    elif trial not in request.trials:
        request.trials.append(trial)
    write_json(folder / _FILE, asdict(request))


def forget_requests(folder: Path) -> None:
    """They are for a process that is at work now, not for a later one."""
    with suppress(FileNotFoundError):
        (folder / _FILE).unlink()


def read_request(folder: Path) -> StopRequest | None:
    """What was asked. It stays there: several processes may be at work on the study."""
    try:
        return StopRequest(**json.loads((folder / _FILE).read_text()))
    except (OSError, ValueError, TypeError):  # not there, or not ours
        return None
