"""What the host knows of one trial while it is in a slot: where it is, how it does, what it writes to disk."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lora_core.adapters import Draw, Site
from lora_core.config import TrainConfig
from lora_core.keys import matches
from lora_core.records import TrialRecord, append_metrics, now, save_trial
from lora_core.schedule import BETAS, learning_rate
from lora_core.trial import TrialSpec

CHECK_EVERY = 8  # steps


def adapts(config: TrainConfig, bottom: int, site: Site) -> bool:
    """Whether a trial whose lowest adapted block is `bottom` adapts this layer."""
    return bottom <= site.layer and matches(config.lora_parameters.keys, site.key)


@dataclass(eq=False)
class Slot:
    """A running trial. Steps are optimizer steps, each of which takes the next `per_step` batches of `order`."""

    spec: TrialSpec
    config: TrainConfig
    bottom: int  # lowest adapted block
    order: np.ndarray  # int [steps · per_step]
    step: int = 0
    best: float = math.inf
    best_step: int | None = None
    best_adapter: Any = None  # the arrays of the best checkpoint
    last: float = math.nan
    since_best: int = 0  # evaluations
    looked: int = 0  # the step of the last evaluation
    seconds: float = 0.0  # its share of the training time
    tokens: int = 0  # trained, those in the loss
    pending: list[float] = field(default_factory=list)  # training losses since the last evaluation
    mark: tuple[int, float] = (0, 0.0)  # tokens and seconds at the last evaluation
    alive: bool = True  # as last read from the device
    resume_error: float = 0.0  # share of ΔW that its rank could not take over from `resume_adapter_file`
    record: TrialRecord = field(init=False)

    def begin(self, again: bool = False) -> None:
        """Leaves on disk that the trial has begun; `again`: that it goes on, with the rows it has."""
        spec = self.spec
        self.record = TrialRecord(
            spec.name, spec.role, number=spec.number, repeat=spec.repeat, params=spec.params,
            config=spec.config, planned_steps=self.steps, started=now(),
        )  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        if not again:
            (self.folder / "metrics.jsonl").unlink(missing_ok=True)
        save_trial(self.folder, self.record)

    @property
    def keeps_state(self) -> bool:
        """Whether the trial, once it has ended, can be gone on with."""
        return self.config.keep_state and self.alive and self.step > 0

    @property
    def folder(self) -> Path:
        return Path(self.spec.folder)

    @property
    def adapter_path(self) -> Path:
        return Path(self.config.adapter_path or self.folder / "adapters").absolute()

    def adapts(self, site: Site) -> bool:
        """Whether the trial adapts this layer."""
        return adapts(self.config, self.bottom, site)

    @property
    def draw(self) -> Draw:
        """What its initial adapters are drawn from."""
        return Draw(self.config.lora_parameters, self.config.seed, self.spec.repeat)

    @property
    def steps(self) -> int:
        return len(self.order) // self.per_step

    @property
    def per_step(self) -> int:
        return self.config.trainer.grad_accumulation

    @property
    def coming(self) -> np.ndarray:
        """The batches that are still to be taken."""
        return self.order[self.step * self.per_step :]

    @property
    def rate(self) -> float:
        return learning_rate(self.config.optimizer, self.step, self.steps)

    def correction(self) -> tuple[float, float]:
        """1/(1-βᵗ) of Adam's two moments at the step about to be taken."""
        return 1 / (1 - BETAS[0] ** (self.step + 1)), 1 / (1 - BETAS[1] ** (self.step + 1))

    @property
    def evaluation_due(self) -> bool:
        return self.step == self.steps or self.step % self.config.trainer.eval_every == 0

    @property
    def waits(self) -> bool:
        """Whether it takes no step before it has been evaluated."""
        return self.evaluation_due and self.looked < self.step

    @property
    def check_due(self) -> bool:
        """Whether the host looks at the losses now. A trial's own steps decide, so that neighbours do not."""
        return self.evaluation_due or self.step % CHECK_EVERY == 0

    def took_step(self, tokens: int) -> None:
        """A step has been handed to the device."""
        self.step += 1
        self.tokens += tokens

    def heard(self, loss: float, seconds: float) -> None:
        """A step has come back, with its training loss and the slot's share of the time."""
        self.pending.append(loss)
        self.seconds += seconds

    def evaluated(self, loss: float, adapter: Any) -> dict[str, float]:
        """Notes a validation loss (mean over all tokens of the set) and returns its row."""
        self.last, self.looked = loss, self.step
        if self.improves(loss):
            self.best, self.best_step, self.best_adapter, self.since_best = loss, self.step, adapter, 0
        elif self.step > 0:
            self.since_best += 1
        row = {"step": self.step, "val_loss": loss, **self._since_mark(), "seconds": round(self.seconds, 3)}
        append_metrics(self.folder, row)
        return row

    def improves(self, loss: float) -> bool:
        """Whether a checkpoint of this loss is the best one. Before the first step there is nothing of the trial's own
        to keep, and -inf is no loss but a trial gone wrong."""
        return self.step > 0 and -math.inf < loss < self.best

    def _since_mark(self) -> dict[str, float]:
        if not self.pending:
            return {}
        tokens, seconds = self.tokens - self.mark[0], self.seconds - self.mark[1]
        mean, self.pending, self.mark = float(np.mean(self.pending)), [], (self.tokens, self.seconds)
        return {
            "train_loss": mean,
            "learning_rate": learning_rate(self.config.optimizer, self.step - 1, self.steps),
            "tokens_per_second": round(tokens / seconds, 1) if seconds > 0 else 0.0,
        }

    @property
    def verdict(self) -> tuple[str, str | None] | None:
        """State and reason once the trial is over, None while it goes on."""
        patience = self.config.trainer.patience
        if not self.alive and self.check_due:
            return "failed", "diverged"
        if self.waits:
            return None
        if self.step == self.steps:
            return "complete", None
        if patience is not None and self.since_best >= patience:
            return "complete", f"no better validation loss in {patience} evaluations"
        return None

    def end(self, state: str, reason: str | None, metrics: dict[str, float], adapter_sha256: str | None) -> TrialRecord:
        """Writes the final `trial.json`."""
        record = self.record
        record.state, record.reason, record.step, record.best_step = state, reason, self.step, self.best_step
        record.metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        record.ended = now()
        if adapter_sha256:
            record.adapter, record.adapter_sha256 = str(self.adapter_path), adapter_sha256
        save_trial(self.folder, record)
        return record

    def metrics(self) -> dict[str, float]:
        """Numbers known once, of a trial that has been evaluated after step 0."""
        lora = self.config.lora_parameters
        adapters = {"scale_ratio": lora.ratio, "multiplier": lora.multiplier}
        return {
            "best_val_loss": self.best,
            # A trial that diverged before its first evaluation has the base model's loss only.
            "final_val_loss": self.last if math.isfinite(self.best) else math.nan,
            "val_perplexity": math.exp(min(self.best, 700)),
            "tokens_per_second": round(self.tokens / self.seconds, 1) if self.seconds else 0.0,
            "train_seconds": round(self.seconds, 3),
            **(adapters if self.config.train_type != "full" else {}),
            **({"resume_error": self.resume_error} if self.resume_error else {}),
        }


class Stopwatch:
    """Seconds since it was last read."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def lap(self) -> float:
        start, self.start = self.start, time.perf_counter()
        return self.start - start
