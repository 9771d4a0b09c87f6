"""What a pruner saves, and what it costs: the same search with and without it, over several seeds.

`python -m tests.benchmarks.pruning` trains the tiny model on the demo data; the sampler is random, so that both
searches of a seed try the same settings, and all that differs is who is stopped. Minutes on two cores.
"""

import argparse
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from reports.study import Study, load
from sweeps.cli import main as lora_sweep

SPACE = (
    "optimizer.learning_rate=tag(log,interval(1e-4,1e-1))", "lora_parameters.rank=2,4,8",
    "lora_parameters.scale_ratio=tag(log,interval(0.5,8))", "num_layers=1,2,4",
)  # fmt: skip


def search(root: Path, pruner: str, seed: int, trials: int, steps: int) -> Study:
    """A search of so many trials of so many steps, which ends at the last of asha's rungs."""
    name = f"{pruner}-{seed}"
    words = ["model=tiny", "search=quick", *SPACE, f"seed={seed}", f"n_trials={trials}", f"trainer.iters={steps}"]
    words += ["search/sampler=random", f"search/pruner={pruner}", "trainer.eval_every=3", "trainer.slots=1"]
    words += ["search.confirm.k=0", "fuse=false", f"study={name}", f"output_dir={root}"]
    words += [f"storage=sqlite:///{root}/optuna.db", f"tracking.uri=sqlite:///{root}/mlflow.db"]
    if pruner == "asha":
        words += ["search.pruner.min_resource=3"]
    with redirect_stdout(StringIO()):
        assert lora_sweep(["search", *words]) == 0
    return load(root / name)


def steps_of(study: Study) -> int:
    return sum(trial.step for trial in study.searched)


def best_of(study: Study) -> float:
    assert study.winner is not None and study.winner.value is not None
    return study.winner.value


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pruning")
    for name, default in (("seeds", 5), ("trials", 16), ("steps", 27)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args(argv)
    saved, lost, same = [], [], 0
    print("seed  steps: none   asha   saved   best loss: none     asha")
    for seed in range(given.seeds):
        with TemporaryDirectory() as folder:
            none, asha = (search(Path(folder), p, seed, given.trials, given.steps) for p in ("none", "asha"))
        saved.append(1 - steps_of(asha) / steps_of(none))
        lost.append(best_of(asha) - best_of(none))
        same += lost[-1] == 0
        print(
            f"{seed:>4}  {steps_of(none):>11} {steps_of(asha):>6} {saved[-1]:>7.1%} {best_of(none):>17.4f} "
            f"{best_of(asha):>8.4f}", flush=True,
        )  # fmt: skip
    print(f"mean saved {fmean(saved):.1%}; the best loss is {fmean(lost):.4f} higher; {same} with the same winner")


if __name__ == "__main__":
    main(sys.argv[1:])
