"""The messages between the parent process and its worker: JSON lines over the worker's stdin and stdout.

The conversation is strict, so that a search with one worker and fixed slots can be repeated bit for bit:

    parent  Setup                 → worker loads model and data
    worker  Ready | Fault         → parent checks the space against the model, opens the study
    parent  Go(start=[...])       → worker fills its slots
    worker  Report(events, free)  → waits: nothing is trained until the parent answers
    parent  Go(stop=[...], start=[...]) | Go(close=True)

`Progress` is the worker's only message that wants no answer.
"""

from dataclasses import dataclass, field
from typing import Any

from lora_core.records import DataInfo, ModelInfo
from lora_core.trial import Ended, Evaluated, TrialSpec


@dataclass
class Setup:
    """`config`: TrainConfig.to_dict() of the default trial; `max_rank`, `max_layers`: largest in the space."""

    config: dict[str, Any]
    max_rank: int
    max_slots: int


@dataclass
class Ready:
    model: ModelInfo
    data: DataInfo
    slots: int
    device: str
    notes: list[str]
    environment: dict[str, Any]


@dataclass
class Go:
    start: list[TrialSpec] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)  # names of the pruned
    close: bool = False


@dataclass
class Report:
    evaluated: list[Evaluated]
    ended: list[Ended]
    free: int


@dataclass
class Progress:
    steps: int  # optimizer steps of all slots since the last Progress
    tokens: int
    seconds: float
    running: list[str]


@dataclass
class Fault:
    """`user`: bad input, to be shown as it is; otherwise our own bug, with its traceback."""

    user: bool
    message: str
