"""What goes into the engine, a `TrialSpec`, and what comes out of it, `Evaluated` and `Ended`."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrialSpec:
    """One fully resolved trial. `folder` is where it writes `trial.json` and `metrics.jsonl`; its adapter goes
    to `config["adapter_path"]`, or `folder`/adapters where that is null. Role `base` trains nothing. `goes_on_from` is
    the folder of a trial with `keep_state` that has ended; this one begins where that one was."""

    name: str
    role: str
    config: dict[str, Any]  # TrainConfig.to_dict()
    folder: str
    number: int | None = None
    repeat: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    goes_on_from: str | None = None


@dataclass
class Evaluated:
    """A trial has a new row in its `metrics.jsonl`; `again`: one from before it was interrupted."""

    name: str
    row: dict[str, float]
    again: bool = False


@dataclass
class Ended:
    """A trial has written its `trial.json`; `record` is its content."""

    name: str
    record: dict[str, Any]
