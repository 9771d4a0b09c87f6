"""`train resume=STUDY/TRIAL`: a trial that has ended goes on from its whole state, as a run of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_core.batches import steps_for
from lora_core.config import TrainConfig, check
from lora_core.errors import UserError
from lora_core.records import CHECKPOINT, StudyRecord, TrialRecord
from sweeps.config import SweepConfig
from sweeps.fingerprint import differences, flat, under
from sweeps.pick import record_of, study_and_trial
from sweeps.protocol import Ready

# What may be another than the trial's: how long it goes on, how it is evaluated, at which rate. Its state fits them.
CHANGEABLE = (
    "trainer.iters", "trainer.epochs", "trainer.eval_every", "trainer.patience", "trainer.slots",
    "trainer.memory_fraction", "optimizer",
)  # fmt: skip
# The run's own. The state is beyond what a resume_adapter_file began with.
OWN = ("fuse", "fuse_quantization", "adapter_path", "keep_state", "resume_adapter_file", "resume_strict")


@dataclass(frozen=True)
class Source:
    """The trial that goes on, the study that it is of, and the trial's folder."""

    study: StudyRecord
    trial: TrialRecord
    folder: Path

    def check(self, config: SweepConfig, ready: Ready) -> None:
        """Raises UserError if the model or the data are not those of the trial, or nothing is left to do."""
        for what, then, now in (("model", self.study.model, ready.model), ("data", self.study.data, ready.data)):
            if then["fingerprint"] != now.fingerprint:
                raise UserError(
                    f"{self.trial.name} was trained with another {what} in {now.path}: it has changed since."
                )
        steps = steps_for(config.trainer, ready.data.batches)
        if steps <= self.trial.step:
            raise UserError(
                f"resume={config.resume}: {self.trial.name} has done {self.trial.step} steps, this would be {steps}: "
                "give more by trainer.iters, or trainer.epochs."
            )


def source_of(config: SweepConfig) -> Source:
    """What `resume` means. Raises UserError if there is no such trial, no whole state of it, or a second start."""
    if config.resume_adapter_file is not None:
        raise UserError(
            f"resume={config.resume} and resume_adapter_file={config.resume_adapter_file} are two starts.\n"
            "The first goes on from the whole state of a trial, the second begins anew from an adapter: leave one out."
        )
    study, text = study_and_trial(Path(config.output_dir), str(config.resume))
    trial = record_of(study, text)
    folder = study.folder if study.record.kind == "train" else study.folder / trial.name
    if trial.state == "running":
        raise UserError(
            f"resume={config.resume}: {trial.name} has not ended. The command that began it goes on with it."
        )
    if trial.adapter is None:
        raise UserError(f"resume={config.resume}: {trial.name} {_why_none(trial)}: there is nothing to go on with.")
    if not (folder / CHECKPOINT).is_file():
        raise UserError(
            f"resume={config.resume}: {trial.name} has left its adapter alone, not its whole state.\n"
            f"Only keep_state=true keeps that. To start anew from the adapter: resume_adapter_file={trial.adapter}"
        )
    return Source(study.record, trial, folder)


def _why_none(trial: TrialRecord) -> str:
    """Why the trial has no adapter."""
    if trial.state == "failed":
        return f"has failed ({trial.reason})"
    learned = trial.role != "base" and trial.value is not None
    return "has not kept its adapter (tracking.keep)" if learned else "has learned nothing"


def continued(config: SweepConfig, written: set[str], source: Source) -> SweepConfig:
    """`config` with the trial's settings for all that is not `written`, and checked. Raises UserError for a written
    one that its state does not fit."""
    values, known = config.to_dict(), flat(TrainConfig.from_dict(source.trial.config).to_dict())
    trial = {key: value for key, value in known.items() if not under(key, OWN)}
    for key, value in trial.items():
        if not under(key, written):
            _put(values, key, value)
    values["tracking"]["experiment"] = source.study.config["tracking"]["experiment"]
    new = {key: value for key, value in flat(values).items() if key in trial and not under(key, CHANGEABLE)}
    if lines := differences({key: trial[key] for key in new}, new):
        raise UserError(
            f"resume={config.resume}: {source.trial.name} cannot go on with other settings: {'; '.join(lines)}"
        )
    made: SweepConfig = SweepConfig.from_dict(values)  # type: ignore[assignment]
    check(TrainConfig.from_dict(values))
    return made


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *groups, last = key.split(".")
    for group in groups:
        values = values[group]
    values[last] = value
