"""The messages between the parent process and its worker: JSON lines over the worker's stdin and stdout.

The conversation is strict, so that a search with one worker and fixed slots can be repeated bit for bit:

    parent  Setup                    → the worker loads model and data
    worker  Ready | Fault            → the parent checks the space against the model, opens the study
    parent  Measure(samples)         → only where the number of slots is to be chosen, or a plan to be made
    worker  Probe
    parent  Go(start=[...])          → the worker fills its slots
    worker  Report(evaluated, ended) → and waits: nothing is trained until the parent answers
    parent  Go(start, stop) | Score | Sample | Fuse | (closes the pipe)

`Progress` is the worker's only message that wants no answer. A worker that is to answer prompts trains nothing:

    parent  Ask
    worker  Answered, one for each adapter | Fault
"""

import json
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import IO, Any, get_args, get_origin, get_type_hints

from lora_core.measured import Probe
from lora_core.records import DataInfo, ModelInfo
from lora_core.samples import Answer
from lora_core.trial import Ended, Evaluated, TrialSpec


@dataclass
class Setup:
    """`config`: TrainConfig.to_dict() of the default trial; `slots`: how many run at once; `variants`: other
    configurations to come, by what an error in them is told with. All are checked before Ready. `joins`: whether
    trials of different depth may share a pass, if the model allows it."""

    config: dict[str, Any]
    slots: int
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    joins: bool = True


@dataclass
class Ready:
    """`slots` run at once; `joins`: trials of different depth share a pass. `notes`: one line each, of what the worker
    decided."""

    model: ModelInfo
    data: DataInfo
    slots: int
    joins: bool
    environment: dict[str, Any]
    notes: list[str]


@dataclass
class Measure:
    """Measure these configurations in 1, 2, 4, … slots, up to as many as there are, and run as many from now on as
    are fastest. Without `choose`: measure one slot and as many as there are, which stay."""

    samples: list[dict[str, Any]]
    choose: bool = True


@dataclass
class Go:
    start: list[TrialSpec] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)  # names of the pruned
    stop_by_hand: list[str] = field(default_factory=list)


@dataclass
class Report:
    evaluated: list[Evaluated]
    ended: list[Ended]
    free: int


@dataclass
class Progress:
    """Since the last Progress, over all slots: optimizer steps, tokens in the loss, seconds."""

    steps: int
    tokens: int
    seconds: float


@dataclass
class Fuse:
    """Merge a saved adapter of this configuration into the base model, into `folder`, and that in fewer bits."""

    adapter: str
    config: dict[str, Any]
    folder: str
    quantization: str | None = None


@dataclass
class Fused:
    """`folder` is null if nothing was written, for the reason given; with a folder, that is why its model is not in the
    bits that were asked for, `quantization`. `error`: what rounding took of ΔW, a share. `changed`: by which share
    of their size the bits changed the weights, and `loss`: the validation loss with them."""

    folder: str | None
    reason: str | None = None
    error: float = 0.0
    quantization: str | None = None
    changed: float = 0.0
    loss: float = 0.0

    @property
    def note(self) -> str:
        """What to say of it."""
        if self.folder is None:
            return f"Merging failed: {self.reason}"
        merged = f"In merging, rounding to the base's dtype changed ΔW by {100 * self.error:.2g} % of its size."
        if self.reason is not None:
            return f"{merged} The model in {self.folder} is whole, but not in {self.quantization}: {self.reason}"
        if self.quantization is not None:
            return (
                f"{merged} The model in {self.folder} was put in {self.quantization}: that changed its weights by "
                f"{100 * self.changed:.2g} % of their size, and its validation loss is {self.loss:.4f}."
            )
        return merged


@dataclass
class Score:
    """Score the test set with a saved adapter of this configuration; null: with the base model alone."""

    adapter: str | None
    config: dict[str, Any]


@dataclass
class Scored:
    """`loss`, in nats per token, is null if it could not be done, for the reason given."""

    loss: float | None
    reason: str | None = None


@dataclass
class Sample:
    """Answer `rows` samples of the data with a saved adapter of this configuration; null: with the base model alone."""

    adapter: str | None
    config: dict[str, Any]
    rows: int


@dataclass
class Sampled:
    """`answers` is empty if it could not be done, for the reason given, or if there are no samples."""

    answers: list[Answer]
    reason: str | None = None


@dataclass
class Ask:
    """Answer these prompts with the base model of a study (its ModelInfo, and how it quantised it), and with each of
    these adapters; null: with the base model alone."""

    model: dict[str, Any]
    quantization: str | None
    group_size: int | None
    adapters: list[str | None]
    prompts: list[str]
    max_tokens: int


@dataclass
class Answered:
    """By prompt, with one of the adapters."""

    answers: list[str]


@dataclass
class Fault:
    """The worker's last words. `kind`: user, bad input, to be shown as it is; disk, there was no room left, in words;
    memory, there was too little of it; device, it failed; bug, one of ours. The last three come with a traceback."""

    kind: str
    message: str


Message = (
    Setup
    | Ready
    | Measure
    | Probe
    | Go
    | Report
    | Progress
    | Fuse
    | Fused
    | Score
    | Scored
    | Sample
    | Sampled
    | Ask
    | Answered
    | Fault
)
_MESSAGES = {cls.__name__: cls for cls in get_args(Message)}


class Channel:
    """Messages over two text streams, one line each."""

    def __init__(self, incoming: IO[str], outgoing: IO[str]) -> None:
        self.incoming = incoming
        self.outgoing = outgoing

    def send(self, message: Message) -> None:
        """Raises BrokenPipeError if the other side is gone."""
        line = json.dumps({"type": type(message).__name__, **asdict(message)})
        self.outgoing.write(line + "\n")
        self.outgoing.flush()

    def receive(self) -> Message | None:
        """The next message; None once the other side is gone."""
        line = self.incoming.readline()
        if not line.endswith("\n"):
            return None
        values = json.loads(line)
        return _built(_MESSAGES[values.pop("type")], values)


def _built(kind: Any, value: Any) -> Any:
    """`value` as `kind`, where that is a dataclass, a list of one, or a tuple."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: _built(hints[name], part) for name, part in value.items()})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        return tuple(value)
    inner = get_args(kind)
    if isinstance(value, list) and inner and is_dataclass(inner[0]):
        return [_built(inner[0], part) for part in value]
    return value
