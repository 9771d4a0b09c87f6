"""One fine-tune: the same worker and the same engine as a search, with one trial in one slot."""

import shlex
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from lora_core.config import TrainConfig
from lora_core.errors import UserError
from lora_core.records import StudyRecord, TrialRecord, from_dict, save_study
from lora_core.slot import now
from lora_core.trial import TrialSpec
from sweeps.client import Worker, WorkerDied
from sweeps.config import SweepConfig
from sweeps.display import Display
from sweeps.environment import environment
from sweeps.protocol import Go, Ready, Report, Setup
from sweeps.search import check_writable
from sweeps.space import cap_config
from sweeps.summary import train_summary
from sweeps.tracking import Tracker


def run(config: SweepConfig, written: set[str], argv: list[str], folder: Path | None = None) -> int:
    """Trains once, into `folder` (default: <output_dir>/train/<name>); returns the exit code."""
    name = config.study or f"train-{datetime.now():%Y%m%d-%H%M%S}"
    folder = (folder or Path(config.output_dir) / "train" / name).absolute()
    check_writable(folder.parent)
    if (folder / "trial.json").exists():
        raise UserError(f"{folder} holds a run already. Give another study= name.")
    display = Display(1)
    with Worker(Setup(config.to_dict(), 1), display.progress) as worker:
        ready = worker.ready()
        config, notes = cap_config(config, written, ready.model.depth)
        tracker = Tracker(config.tracking.uri, str(config.tracking.experiment))
        record = _record(name, config, ready, notes, argv)
        display.start(ready, [], record.notes)
        spec = TrialSpec(name, "train", TrainConfig.from_dict(config.to_dict()).to_dict(), str(folder))
        trial, base = _train(worker, tracker, record, spec, display)
        fused = _fuse(worker, config, trial) if config.fuse and trial.adapter else None
    display.say(train_summary(record, trial, base, fused))
    return 0 if trial.state == "complete" else 1


def _train(
    worker: Worker, tracker: Tracker, record: StudyRecord, spec: TrialSpec, display: Display
) -> tuple[TrialRecord, float]:
    """Trains the one trial; returns its record, and the loss before the first step."""
    folder = Path(spec.folder)
    folder.mkdir(parents=True, exist_ok=True)
    tracker.open_study(record, folder)
    tracker.start_trial(record, spec)
    save_study(folder, record)
    state, base = "interrupted", float("nan")
    try:
        with display:
            display.started(spec.name, spec.config["trainer"]["iters"] or 0)
            report = _go(worker, Go(start=[spec]))
            base = report.evaluated[0].row["val_loss"]
            while True:
                for event in report.evaluated:
                    tracker.log_evaluation(event.name, event.row)
                    display.evaluated(event.name, event.row)
                if report.ended:
                    break
                report = _go(worker, Go())
        trial = from_dict(TrialRecord, report.ended[0].record)
        tracker.end_trial(trial)
        state = "complete"
        return trial, base
    except WorkerDied as error:
        raise UserError(str(error)) from None
    finally:
        record.state, record.ended = state, now()
        tracker.close_study(record, state, None)
        save_study(folder, record)


def _go(worker: Worker, go: Go) -> Report:
    worker.send(go)
    return worker.report()


def _fuse(worker: Worker, config: SweepConfig, trial: TrialRecord) -> str | None:
    adapter = Path(str(trial.adapter))
    return worker.fuse(adapter, trial.config, adapter / "fused").folder


def _record(name: str, config: SweepConfig, ready: Ready, notes: list[str], argv: list[str]) -> StudyRecord:
    command = shlex.join(["lora-sweep", "train", *argv])
    return StudyRecord(
        study=name, kind="train", created=now(), command=command, resume_command=command, n_trials=1,
        seed=config.seed, config=config.to_dict(), model=asdict(ready.model), data=asdict(ready.data),
        environment={**environment(), **ready.environment}, notes=[*ready.notes, *notes],
    )  # fmt: skip
