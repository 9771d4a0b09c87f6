"""What is in training, how fast, and how long the rest will take."""

import time
from dataclasses import dataclass, field

from lora_core.records import TrialRecord
from lora_core.trial import TrialSpec
from sweeps.protocol import Progress


@dataclass
class Running:
    """A trial in training. `step` is a guess between two evaluations; `losses`: on the validation set, that before the
    first step included."""

    spec: TrialSpec | TrialRecord
    steps: int
    step: float = 0.0
    train_loss: float | None = None
    losses: list[float] = field(default_factory=list)


class Work:
    """How much there is to do, in trials, and how long it will take at the pace so far."""

    def __init__(self, trials: int) -> None:
        self.left = trials  # searched trials that have not ended
        self.batches = 0  # of one epoch
        self.speed = 0.0  # tokens a second, of late
        self.running: dict[str, Running] = {}
        self.began: float | None = None
        self.finished = 0.0  # trials that have ended since then

    def begin(self, trials: int) -> None:
        self.began, self.left, self.finished = time.monotonic(), max(0, trials), 0.0

    def started(self, spec: TrialSpec) -> None:
        trainer = spec.config["trainer"]
        steps = trainer["iters"] or max(1, round(trainer["epochs"] * self.batches))
        if spec.role != "base":
            self.running[spec.name] = Running(spec, steps)

    def took(self, message: Progress) -> None:
        """Steps since the last call, of all running trials alike; `evaluated` puts that right."""
        if not message.steps or message.seconds <= 0:
            return
        now = message.tokens / message.seconds
        self.speed = now if self.speed == 0 else 0.7 * self.speed + 0.3 * now
        for trial in self.running.values():
            trial.step = min(trial.steps, trial.step + message.steps / len(self.running))

    def evaluated(self, name: str, row: dict[str, float]) -> None:
        if trial := self.running.get(name):
            trial.step, trial.train_loss = row["step"], row.get("train_loss")
            trial.losses.append(row["val_loss"])

    def ended(self, record: TrialRecord) -> None:
        self.running.pop(record.name, None)
        # A trial that was stopped early counts whole: the pace then includes that some are.
        self.finished += record.role != "base"
        if record.role in ("trial", "confirm"):
            self.left = max(0, self.left - 1)

    def under_way(self) -> float:
        """The done part of the trials in training."""
        return sum(trial.step / trial.steps for trial in self.running.values())

    def seconds_left(self) -> float | None:
        """None as long as there is no pace to go by."""
        done = self.finished + self.under_way()
        if self.began is None or done <= 0:
            return None
        # The default configuration is trained too, beside the trials.
        extra = 1 if "default" in self.running else 0
        return (time.monotonic() - self.began) / done * max(0.0, self.left + extra - self.under_way())
