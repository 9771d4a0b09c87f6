"""What can be wrong with a run is found before it leaves anything behind."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lora_core.config import TrainConfig
from lora_core.records import StudyRecord
from sweeps.axes import hydra_text
from sweeps.config import SweepConfig
from sweeps.connect import alone, open_client, sqlite_file
from sweeps.fits import ADAPTIVE
from sweeps.space import Job
from sweeps.study_folder import check_writable


def check_places(config: SweepConfig, folder: Path) -> None:
    """Raises UserError where files or MLflow runs could not be written. Takes seconds, creates nothing."""
    check_writable("output_dir", folder)
    if config.adapter_path is not None:
        check_writable("adapter_path", Path(config.adapter_path).absolute())
    if config.tracking.uri.startswith(("http://", "https://")):
        open_client(config.tracking.uri)


@contextmanager
def opening(*urls: str) -> Iterator[ExitStack]:
    """A block that opens the databases at `urls`. What is put on the stack is run only if it fails, and then
    files that were not there before are removed.

    No other process of ours is in such a block for the same file: it cannot have opened what is removed here.
    """
    files = sorted({file for url in urls if (file := sqlite_file(url)) is not None})
    with ExitStack() as locks:
        for file in files:
            locks.enter_context(alone(f"opening {file}"))
        with ExitStack() as undo:
            for file in files:
                if not file.exists():
                    undo.callback(_remove, file)
            yield undo
            undo.pop_all()


def _remove(file: Path) -> None:
    with suppress(OSError):  # it could not be made in the first place
        file.unlink()


def trial_config(config: SweepConfig) -> dict:
    """A trial's own configuration: in a search each trial has its own adapter folder, and only the winner is
    merged."""
    values = {**config.to_dict(), "adapter_path": None, "fuse": False, "fuse_quantization": None}
    return TrainConfig.from_dict(values).to_dict()


def variants(job: Job) -> dict[str, dict]:
    """The configurations at the choices and ends of every axis, for the worker to check against the model."""
    return {
        f"Axis {axis.key}={hydra_text(value)}": trial_config(job.config_at(axis.key, value))
        for axis in job.axes
        for value in axis.corners()
    }


def most_slots(config: SweepConfig, earlier: StudyRecord | None) -> int:
    """A search that learns from ended trials must not start most of them blindly. A study goes on as it began, or
    as memory then allowed."""
    trials = max(1, config.n_trials // config.cluster.workers)
    most = _most(config.search.sampler["name"], config.search.pruner["name"], trials)
    if earlier is None or "slots" not in earlier.environment:
        return most
    wished, used = config.trainer.slots, int(earlier.environment["slots"])
    if wished == "auto":
        return used
    same = wished == earlier.config["trainer"]["slots"]
    shrunk = used < min(int(wished), _most(earlier.sampler, earlier.pruner, earlier.n_trials))
    return min(most, used) if same and shrunk else most


def slots_for(config: SweepConfig, earlier: StudyRecord | None) -> tuple[int, bool]:
    """How many slots to set up; and whether that is only the most there may be, of which measuring chooses."""
    most = most_slots(config, earlier)
    if config.trainer.slots != "auto":
        return min(int(config.trainer.slots), most), False
    return most, earlier is None or "slots" not in earlier.environment


def depths_join(earlier: StudyRecord | None) -> bool:
    """Whether trials of different depth may share a pass: not where this study has found that slower."""
    return earlier is None or bool(earlier.environment.get("depths_together", True))


def _most(sampler: str, pruner: str, n_trials: int) -> int:
    return max(1, n_trials // 4) if sampler in ADAPTIVE or pruner != "none" else n_trials


def slot_notes(config: SweepConfig) -> list[str]:
    """Says so where more slots were asked for than the search may have."""
    wished, most = config.trainer.slots, most_slots(config, None)
    if wished == "auto" or int(wished) <= most:
        return []
    return [f"trainer.slots {wished} → {most}: with more, most trials would start before the search has learnt."]
