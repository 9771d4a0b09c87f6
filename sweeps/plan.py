"""`lora-sweep plan`: what a search would take, measured with the same worker and engine. Nothing is written."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from lora_core.measured import Probe
from reports import wording
from sweeps.client import Worker, WorkerDied
from sweeps.config import study_name
from sweeps.confirm import rounds
from sweeps.display import Display
from sweeps.look import check_stores, ended_trials
from sweeps.preflight import check_places, depths_join, slot_notes, slots_for, variants
from sweeps.protocol import Ready, Setup
from sweeps.samplers import cells
from sweeps.slots import measure
from sweeps.space import Job, cap_num_layers
from sweeps.study_folder import earlier_record, has_completed, resume_command, study_record
from sweeps.warm_start import warm_start


def run(job: Job) -> int:
    """Prints what the search of this command line would take.

    Returns the exit code: 1 if the training process died. Raises UserError for what `search` would refuse.
    """
    name = study_name(job.config, job.config.search.name)
    folder = Path(job.config.output_dir).absolute() / name
    check_places(job.config, folder)
    check_stores(job.config)
    display = Display(job.config.n_trials)
    earlier = earlier_record(folder)
    slots, choose = slots_for(job.config, earlier)
    try:
        with Worker(Setup(job.config.to_dict(), slots, variants(job), depths_join(earlier))) as worker:
            with display.doing("Loading the model and the data"):
                ready = worker.ready()
            _plan(name, job, ready, folder, display).show(worker, choose)
    except WorkerDied as death:
        display.fail(str(death))
        return 1
    return 0


def _plan(name: str, job: Job, ready: Ready, folder: Path, display: Display) -> "Plan":
    """Says what would run, if nothing speaks against it."""
    job, notes = cap_num_layers(job, ready.model.depth)
    record = study_record(name, folder, job, ready, notes + slot_notes(job.config), "")
    record.notes += warm_start(job, record, folder.parent)[1]
    ended = ended_trials(record, folder, job.config.storage)
    display.start(ready, record.space, record.notes)
    size = cells({axis.key: axis.distribution() for axis in job.axes}, job.conditions)
    total = job.config.n_trials if size is None else min(job.config.n_trials, size)
    is_new, left, confirm = earlier_record(folder) is None, max(0, total - ended), job.config.search.confirm
    again = min(confirm.k, total) * confirm.repeats if left else sum(map(len, rounds(folder, confirm)))
    work = Work(left, ended, not has_completed(folder / "default"), again)
    argv = wording.typed(shlex.join(["lora-sweep", "search", *job.argv]))
    return Plan(job, work, argv if is_new else resume_command(job.argv, name), display)


@dataclass
class Work:
    """`left`: trials to train; `ended`: those of an earlier run; `default`: whether the default settings are to be
    trained too; `again`: trainings with other seeds, at most."""

    left: int
    ended: int
    default: bool
    again: int = 0

    @property
    def trainings(self) -> int:
        return self.left + self.default + self.again

    def __str__(self) -> str:
        parts = [wording.plural(self.left, "more trial" if self.ended else "trial")] if self.left else []
        parts += [f"{wording.plural(self.again, 'repeat')} of the best"] if self.again else []
        return wording.listed([*parts, "the default settings"] if self.default else parts)


@dataclass
class Plan:
    job: Job
    work: Work
    command: str
    display: Display

    def show(self, worker: Worker, choose: bool) -> None:
        """Measures and prints; if `choose`, for the number of slots that is found best, else for all there are."""
        if self.work.ended:
            self.display.say(f"{self.work.ended} of {self.job.config.n_trials} trials have ended already")
        if not self.work.trainings:
            self.display.say("Nothing is left to train.")
            return
        with self.display.doing("Measuring"):
            probe = measure(worker, self.job, choose, self.display.say)
        pinned = f" trainer.slots={probe.slots}" if choose else ""
        prunes = self.job.config.search.pruner["name"] != "none"
        for line in [*_table(probe), *_costs(probe, self.work, prunes), *probe.notes]:
            self.display.say(line)
        self.display.say(f"Nothing was written. To train:\n  {self.command}{pinned}")


def _table(probe: Probe) -> list[str]:
    """The measured numbers of slots, that which will be used marked."""
    rows = [
        f"{each.slots:>7} {'★' if each.slots == probe.slots else ' '} "
        f"{each.tokens_per_second:>10,.0f} {each.peak_gb:>10.3g} GB"
        for each in probe.measured
    ]
    return [f"Slots {probe.slots}", f"{'slots':>7}   {'tokens/s':>10} {'memory':>13}", *rows]


def _costs(probe: Probe, work: Work, prunes: bool) -> list[str]:
    least, most = probe.trainable
    total = probe.fixed_seconds + work.trainings * probe.trial_seconds
    less = ", less what the pruner stops early" if prunes else ""
    return [
        f"Trainable parameters {least:,}" + (f" – {most:,}" if most > least else ""),
        f"Memory about {probe.memory_gb:.3g} GB",
        f"Time about {duration(total)} for {work}, {duration(probe.trial_seconds)} each{less}",
    ]


def duration(seconds: float) -> str:
    """As exactly as an estimate deserves: `4.5 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
