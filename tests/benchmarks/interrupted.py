"""A search that is interrupted five ways, against what it would have been.

    python -m tests.benchmarks.interrupted --trials 16 model=tiny trainer.iters=64

The settings are those of `lora-sweep search`; it runs in a temporary folder. With sampler random and no pruner, every
trial must be that of the same search undisturbed, to the last bit of curve and adapter. With tpe and asha, every curve
must be that of `lora-sweep train` with the trial's settings, as far as the trial went. Exit code 1 where one is not.
"""

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from lora_core.records import ADAPTER, TrialRecord, load_metrics, load_trial
from sweeps.axes import hydra_text
from sweeps.cli import main as lora_sweep
from tests.fault_table import Row
from tests.sweeps.faults import FINISHED, Disturbed, assert_whole
from tests.sweeps.helpers import Place

FROZEN = 20  # seconds
TIMES = ("seconds", "tokens_per_second")  # of a row of a curve: how long it took is no result
EQUAL, DIFFERENT, UNKNOWN = "equal", "DIFFERENT", "–"


def kill_worker(search: Disturbed) -> None:
    os.kill(_training(search), signal.SIGKILL)


def freeze(search: Disturbed) -> None:
    processes = [search.process.pid, _training(search)]
    for number, seconds in ((signal.SIGSTOP, FROZEN), (signal.SIGCONT, 0)):
        for process in processes:
            os.kill(process, number)
        time.sleep(seconds)


def end_by(number: signal.Signals) -> Callable[[Disturbed], None]:
    def end(search: Disturbed) -> None:
        search.process.send_signal(number)
        search.over()
        search.start()

    return end


WAYS = {
    "kill -9 of the training process": kill_worker,
    "kill -9 of the search": end_by(signal.SIGKILL),
    "SIGTERM": end_by(signal.SIGTERM),
    "SIGINT": end_by(signal.SIGINT),
    f"SIGSTOP for {FROZEN} s, then SIGCONT": freeze,
}


def _training(search: Disturbed) -> int:
    """The training process; a search that has just begun again starts one."""
    while (process := search.worker()) is None:
        assert search.wait(0.1), f"there is no training process: {search.over()}"
    return process


def interrupt(search: Disturbed, chance: random.Random) -> None:
    """Runs the search to its end with all of `WAYS`, spread over its trials, each in the first half of one."""
    search.start()
    for nth, (way, strike) in enumerate(WAYS.items(), 1):
        after = search.total * nth // (len(WAYS) + 1)
        while len(ended := searched(search)) < after:
            assert search.wait(0.1), f"it ended before {way}: {search.over()}"
        length = load_trial(search.place.folder() / ended[-1]).metrics["train_seconds"]
        assert search.wait(chance.random() * length / 2), f"it ended before {way}: {search.over()}"
        running = ", ".join(trial.name for trial in search.look())
        strike(search)
        print(f"  {way}, after {len(ended)} trials, during {running or 'none'}", flush=True)
    search.over()
    assert search.process.returncode == FINISHED
    assert_whole(search.place, search.total)


def searched(search: Disturbed) -> list[str]:
    return sorted(name for name in search.ended if name.startswith("trial-"))


def curve(folder: Path) -> list[dict[str, str]]:
    """Every digit of a trial's evaluations; text, because NaN is not equal to NaN."""
    return [{key: repr(row[key]) for key in row if key not in TIMES} for row in load_metrics(folder)]


def same_curve(ours: Path, other: Path) -> str:
    """Whether the trial in `ours` had the evaluations of the one in `other`, which may have gone on for longer."""
    rows = curve(ours)
    return EQUAL if rows and rows == curve(other)[: len(rows)] else DIFFERENT


def same_adapter(ours: Path, other: Path) -> str:
    files = [folder / "adapters" / ADAPTER for folder in (ours, other)]
    there = [file.exists() for file in files]
    if not any(there):
        return UNKNOWN
    return EQUAL if all(there) and files[0].read_bytes() == files[1].read_bytes() else DIFFERENT


def table(trials: list[TrialRecord], folder: Path, twin: Callable[[TrialRecord], Path]) -> int:
    """Prints each trial beside its `twin`'s folder; returns how many are different."""
    different = 0
    print("  trial       state     steps  curve      adapter")
    for trial in trials:
        ours, other = folder / trial.name, twin(trial)
        # The adapter of a trial that ran on alone is not that of the moment when it was stopped here.
        comparable = load_trial(other).step == trial.step
        found = [same_curve(ours, other), same_adapter(ours, other) if comparable else UNKNOWN]
        different += DIFFERENT in found or (trial.state != "pruned" and not comparable)
        print(f"  {trial.name}  {trial.state:<8}  {trial.step:>5}  {found[0]:<9}  {found[1]}", flush=True)
    print(f"  {len(trials) - different} of {len(trials)} equal to the last bit")
    return different


def against_undisturbed(root: Path, trials: int, given: list[str]) -> int:
    more = [*given, "search/sampler=random", "search/pruner=none"]
    hit, calm = (Disturbed(_place(root / name), Row(), trials, more) for name in ("hit", "calm"))
    print("Sampler random, no pruner; each trial against that of the same search undisturbed", flush=True)
    interrupt(hit, random.Random(0))
    calm.finish()
    return table(hit.place.trials(), hit.place.folder(), lambda trial: calm.place.folder() / trial.name)


def against_alone(root: Path, trials: int, given: list[str]) -> int:
    more = [*given, "search/sampler=tpe", "search/pruner=asha"]
    hit = Disturbed(_place(root / "learning"), Row(), trials, more)

    def alone(trial: TrialRecord) -> Path:
        settings = [f"{key}={hydra_text(value)}" for key, value in trial.params.items()]
        with redirect_stdout(StringIO()):
            assert lora_sweep(["train", *hit.place.arguments(*given, *settings, f"study={trial.name}")]) == 0
        return hit.place.folder(f"train/{trial.name}")

    print("Sampler tpe, pruner asha; each trial against `lora-sweep train` with its settings", flush=True)
    interrupt(hit, random.Random(1))
    return table(hit.place.trials(), hit.place.folder(), alone)


def _place(root: Path) -> Place:
    root.mkdir()
    return Place(root)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.interrupted")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("overrides", nargs="*", help="key=value, as of `lora-sweep search`")
    given = parser.parse_args(argv)
    with TemporaryDirectory() as root:
        checks = (against_undisturbed, against_alone)
        return int(any([check(Path(root), given.trials, given.overrides) for check in checks]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
