"""How many trials train at the same time: measured on configurations drawn from the space, in as much memory as
there is."""

from collections.abc import Callable
from typing import Any

import optuna
from optuna.samplers import RandomSampler

from lora_core.measured import Probe
from sweeps.client import OutOfMemory, Worker
from sweeps.conditions import present
from sweeps.preflight import trial_config
from sweeps.space import Job

SAMPLES = 16


def draw(job: Job, count: int = SAMPLES) -> list[dict[str, Any]]:
    """Configurations of trials at random from the space; for one seed the same ones."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=RandomSampler(seed=job.config.seed))
    distributions = {axis.key: axis.distribution() for axis in job.axes}
    drawn = [study.ask(distributions).params for _ in range(count)]
    points = [{axis.key: axis.decode(params[axis.key]) for axis in job.axes} for params in drawn]
    return [trial_config(job.config_for(present(values, job.conditions))) for values in points]


def measure(worker: Worker, job: Job, choose: bool, say: Callable[[str], None]) -> Probe:
    """What the worker finds out with the slots that it has, or with fewer if trying more ends it. With `choose` it
    goes on with as many of them as are fastest."""
    samples = draw(job)
    while True:
        try:
            return worker.measure(samples, choose)
        except OutOfMemory as death:
            slots = worker.setup.slots
            if slots == 1:
                raise
            say(f"{death} Slots at most {slots} → {slots // 2}.")
        worker.restart(slots // 2)
        worker.ready()


def slots_line(probe: Probe) -> str:
    """`Slots 4 (1: 1,200 tokens/s, 2: 2,100, 4: 3,500, 8: 3,400)`."""
    first, *others = [f"{each.slots}: {each.tokens_per_second:,.0f}" for each in probe.measured]
    return f"Slots {probe.slots} ({', '.join([f'{first} tokens/s', *others])})"
