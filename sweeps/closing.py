"""What follows the last trial of a search. What fails here is said, and can be done again: the trials are complete."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from lora_core.errors import first_line
from lora_core.records import StudyRecord, adapter_damage
from reports.samples import FILE as SAMPLES
from sweeps.client import Worker, WorkerDied
from sweeps.config import SweepConfig
from sweeps.display import Display
from sweeps.protocol import Fused
from sweeps.sampling import sample
from sweeps.scoring import score
from sweeps.study_folder import command_on, write_log
from sweeps.telling import Teller


class Closing:
    """The end of the study in `folder`. `note` takes lines for the record and the user."""

    def __init__(
        self, config: SweepConfig, record: StudyRecord, folder: Path, display: Display, note: Callable[[str], None]
    ) -> None:
        self.config = config
        self.record = record
        self.folder = folder
        self.display = display
        self.note = note

    def fuse_winner(self, worker: Worker) -> None:
        """Merges the winner's adapter into the base model, if that is wanted."""
        from reports.study import load

        best = load(self.folder).winner
        if best is None or not self.config.fuse or best.adapter is None:
            return
        adapter, bits = Path(best.adapter), self.config.fuse_quantization
        with self.display.doing("Merging the winner into the base model"):
            try:
                damage = adapter_damage(best, adapter)
                fused = Fused(None, damage) if damage else worker.fuse(adapter, best.config, self.folder / "best", bits)
            except WorkerDied as death:
                fused = Fused(None, write_log(self.folder, death))
        self.note(fused.note)

    def score(self, worker: Worker, tracker: Teller) -> None:
        """Scores the test set, if there is one. The winner is known by now: what it says changes nothing."""
        if self.record.data["rows"].get("test"):
            ask = partial(score, worker, self.folder, tracker)
            self._ask(ask, "Scoring the test set", "The test set was not scored")

    def sample(self, worker: Worker) -> None:
        """Has a few rows answered, for the report; without that wish those of an earlier run go."""
        if rows := self.config.tracking.samples:
            ask = partial(sample, worker, self.folder, rows)
            self._ask(ask, "Answering samples", "The samples were not answered")
        else:
            (self.folder / SAMPLES).unlink(missing_ok=True)

    def _ask(self, ask: Callable[[], list[str]], doing: str, failed: str) -> None:
        """Something of the worker; notes the problems that there were."""
        try:
            with self.display.doing(doing):
                problems = ask()
        except WorkerDied as death:
            problems = [f"{failed}: {write_log(self.folder, death)}"]
        for problem in problems:
            self.note(problem)

    def report(self) -> Path | None:
        """Writes the report; returns its folder."""
        from reports.writer import build

        try:
            with self.display.doing("Writing the report"):
                return build(self.folder).parent
        except Exception as error:  # whatever it is, hours of training must not look lost for it
            again = command_on(self.record, self.folder, "report")
            self.note(f"The report could not be written ({first_line(error)}). Once mended: {again}")
            return None
