"""What samplers and pruners ask of the axes they are to search, and of what is installed."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from lora_core.config import TrainConfig
from lora_core.errors import UserError
from sweeps.axes import Axis, hydra_text
from sweeps.conditions import Conditions, present
from sweeps.fingerprint import under
from sweeps.keys import near_key

# Samplers that learn from ended trials, so that not too many trials should run at once.
ADAPTIVE = ("tpe", "cmaes", "gp", "nsga2")
# Those that would draw an axis that exists only sometimes at random, and learn nothing of it.
UNCONDITIONAL = ("cmaes", "gp", "nsga2")
# Sampler → the package it needs, which is also the name of our extra, or is brought by it.
PACKAGES = {"cmaes": "cmaes", "gp": "torch"}
# A pruner compares the losses of trials at one step, so a step must be the same thing in all of them.
LENGTH = ("trainer.iters", "trainer.epochs", "trainer.batch_size", "trainer.grad_accumulation")

# What an adapter is of: trials that differ in it can start from the same one only where it is fitted to each.
OF_ADAPTERS = ("train_type", "num_layers", "lora_parameters", *(
    f"lora_parameters.{name}" for name in ("rank", "scale", "scale_ratio", "scaling", "keys")
))  # fmt: skip

OF_ADAPTERS_ALONE = ("lora_parameters", "optimizer.lora_plus_ratio")


def check_methods(sampler: str, pruner: str, axes: list[Axis], objectives: int = 1) -> None:
    """Raises UserError where the sampler or the pruner has no meaning for these axes, or is not installed."""
    _check_installed(sampler)
    if objectives > 1:
        _check_objectives(sampler, pruner)
    for axis in axes:
        if axis.key in LENGTH and pruner != "none":
            raise UserError(f"Axis {axis}: {no_pruner(pruner, axis.key)}")
        if sampler == "grid" and not _is_discrete(axis):
            raise UserError(
                f"Axis {axis}: the sampler grid tries every value, and an interval has no end of them.\n"
                f"List some ({axis.key}=a,b), give a range(start,stop,step), or take another search/sampler."
            )
    if sampler == "cmaes" and all(axis.choices is not None for axis in axes):
        raise UserError(
            "search/sampler=cmaes models ranges and intervals, and this space has only lists of values.\n"
            "Write one of them as a range or an interval, or take another search/sampler."
        )


def _check_objectives(sampler: str, pruner: str) -> None:
    if pruner != "none":
        raise UserError(
            f"search.objectives names several, and the pruner {pruner} stops a trial for one of them alone.\n"
            "Leave one, or leave the pruner out: search/pruner=none"
        )
    if sampler == "cmaes":
        raise UserError("search/sampler=cmaes knows one objective only: take tpe, nsga2, gp, random, grid or qmc.")


def check_conditions(sampler: str, conditions: Conditions) -> None:
    """Raises UserError where the sampler has no way with axes that exist only sometimes."""
    if conditions and sampler in UNCONDITIONAL:
        raise UserError(
            f"search.when with search/sampler={sampler}: it models all axes together, so it would draw "
            f"{next(iter(conditions))} at random and learn nothing of it.\nTake tpe, random, grid or qmc."
        )


def check_warm_start(sampler: str, studies: list[str]) -> None:
    """Raises UserError where the sampler could not learn from the trials of other studies."""
    if studies and sampler != "tpe":
        why = "keeps a state that goes with its own trials" if sampler in ADAPTIVE else "learns from no trial"
        raise UserError(f"search.warm_start with search/sampler={sampler}, which {why}: take tpe, or leave it out.")


def check_enqueued(settings: list[dict[str, Any]], axes: list[Axis], conditions: Conditions) -> None:
    """Raises UserError for a setting to be tried first that does not lie in the space."""
    known = {axis.key: axis for axis in axes}
    for index, setting in enumerate(settings):
        where = f"search.enqueue, entry {index + 1}"
        for key, value in setting.items():
            if key not in known:
                raise UserError(f"{where}: {key} is no axis of this search.{near_key(key, known)}")
            if not known[key].contains(value):
                raise UserError(f"{where}: {key}={hydra_text(value)} does not lie in the axis {known[key]}.")
        for key in setting.keys() - present(setting, conditions).keys():
            needed = conditions[key]
            wanted = ",".join(map(hydra_text, needed.values))
            raise UserError(f"{where}: {key} exists only when {needed.key}={wanted}. Give that too.")
        if not setting or setting in settings[:index]:
            raise UserError(f"{where} is {'there twice' if setting else 'empty'}: leave it out.")


def check_resumed(axes: list[Axis], axis: Axis, config: TrainConfig) -> None:
    """Raises UserError where trials that differ in one of the axes could not all start from `resume_adapter_file`."""
    resumed = config.resume_adapter_file is not None or any(each.key == "resume_adapter_file" for each in axes)
    if resumed and config.resume_strict and axis.key in OF_ADAPTERS:
        raise UserError(
            f"trials that differ in {axis.key} cannot all start from the adapter in resume_adapter_file as it is.\n"
            "To have it fitted to each of them: resume_strict=false"
        )


def check_fitted(written: set[str], configs: Iterable[TrainConfig]) -> None:
    """Raises UserError where an adapter is to be fitted, by a `written` word, and there is none in any of `configs`."""
    if "resume_strict" in written and not any(c.resume_strict or c.resume_adapter_file for c in configs):
        raise UserError(
            "resume_strict=false fits an adapter to this run: give that too, resume_adapter_file=PATH, or leave it out."
        )


def check_has_adapters(written: set[str], configs: Iterable[TrainConfig]) -> None:
    """Raises UserError where a `written` setting is one of adapters, and none of `configs` has any."""
    about = sorted(key for key in written if under(key, OF_ADAPTERS_ALONE))
    if about and all(config.train_type == "full" for config in configs):
        raise UserError(f"{about[0]}: train_type=full has no adapters, so it would change nothing. Leave it out.")


def no_pruner(pruner: str, key: str) -> str:
    """Why trials that differ in `key` cannot be pruned."""
    return (
        f"the pruner {pruner} compares trials at the same step, which says nothing where {key} differs.\n"
        "Give it one value, or leave the pruner out: search/pruner=none"
    )


def _check_installed(sampler: str) -> None:
    package = PACKAGES.get(sampler)
    if package is not None and find_spec(package) is None:
        raise UserError(
            f"search/sampler={sampler} needs the extra {sampler}: uv sync --extra {sampler}, "
            f"or pip install '.[{sampler}]'"
        )


def _is_discrete(axis: Axis) -> bool:
    return axis.kind != "float" or axis.step is not None or axis.low == axis.high
