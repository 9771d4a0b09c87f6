"""What a pruner saves, and what it costs: the same search with and without it, over several seeds.

    python -m tests.benchmarks.pruning --seeds 0 1 2 3 4
    python -m tests.benchmarks.pruning --trials 32 search=lora data.path=my_data trainer.iters=270

The sampler is random, so that both searches of a seed try the same settings, and all that differs is who is stopped.
Without settings the tiny model is trained on the demo data: minutes on two cores.
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

TINY = (
    "model=tiny", "search=quick", "optimizer.learning_rate=tag(log,interval(1e-4,1e-1))",
    "lora_parameters.rank=2,4,8", "lora_parameters.scale_ratio=tag(log,interval(0.5,8))", "num_layers=1,2,4",
    "trainer.iters=81", "trainer.eval_every=9", "trainer.slots=1",
)  # fmt: skip


def search(root: Path, pruner: str, seed: int, trials: int, settings: list[str]) -> Study:
    """A search of so many trials."""
    name = f"{pruner}-{seed}"
    words = [*settings, f"seed={seed}", f"n_trials={trials}", "search/sampler=random", f"search/pruner={pruner}"]
    words += ["search.confirm.k=0", "fuse=false", f"study={name}", f"output_dir={root}"]
    words += [f"storage=sqlite:///{root}/optuna.db", f"tracking.uri=sqlite:///{root}/mlflow.db"]
    with redirect_stdout(StringIO()):
        assert lora_sweep(["search", *words]) == 0
    return load(root / name)


def steps_of(study: Study) -> int:
    return sum(trial.step for trial in study.searched)


def winner_of(study: Study) -> tuple[str, float]:
    assert study.winner is not None and study.winner.value is not None
    return study.winner.name, study.winner.value


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pruning")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--trials", type=int, default=16)
    given, settings = parser.parse_known_args(argv)
    saved, lost, same = [], [], 0
    print("seed  steps: none   asha   saved   best loss: none     asha")
    for seed in given.seeds:
        with TemporaryDirectory() as folder:
            none, asha = (search(Path(folder), p, seed, given.trials, settings or [*TINY]) for p in ("none", "asha"))
        saved.append(1 - steps_of(asha) / steps_of(none))
        (best, least), (found, loss) = winner_of(none), winner_of(asha)
        lost.append(loss - least)
        same += found == best
        print(
            f"{seed:>4}  {steps_of(none):>11} {steps_of(asha):>6} {saved[-1]:>7.1%} {least:>17.4f} "
            f"{loss:>8.4f}", flush=True,
        )  # fmt: skip
    print(f"mean saved {fmean(saved):.1%}; the best loss is {fmean(lost):.4f} higher; {same} with the same winner")


if __name__ == "__main__":
    main(sys.argv[1:])
