"""A search, as command line and packaged spaces describe it: axes, and a configuration for each draw."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_core.errors import UserError
from sweeps.axes import Axis, hydra_text
from sweeps.compose import Composer, parse
from sweeps.conditions import Conditions, conditions_of, made_to_exist, present, settled
from sweeps.config import KEYS, SweepConfig, resolve
from sweeps.explain import explain
from sweeps.fingerprint import flat, under
from sweeps.fits import (
    LENGTH,
    OF_ADAPTERS_ALONE,
    check_conditions,
    check_enqueued,
    check_fitted,
    check_has_adapters,
    check_methods,
    check_resumed,
    check_warm_start,
    no_pruner,
)
from sweeps.grammar import axis_from, is_fixed


@dataclass
class Job:
    """`config`: the default one, no axis applied. `written`: keys with one value on the command line.
    `depth`: the blocks of the model, once known; a packaged num_layers above it means all of them. `quiet`: only what
    came out is to be said."""

    config: SweepConfig
    axes: list[Axis]
    written: set[str]
    argv: list[str]
    composer: Composer = field(repr=False)
    depth: int | None = None
    quiet: bool = False

    @property
    def conditions(self) -> Conditions:
        """Which axes exist only sometimes."""
        return conditions_of(self.config.search.when, self.axes)

    @property
    def space(self) -> list[str]:
        """The axes as overrides, and when they exist."""
        when = self.config.search.when or {}
        return [f"{axis} when {when[axis.key]}" if axis.key in when else str(axis) for axis in self.axes]

    def config_at(self, key: str, value: Any) -> SweepConfig:
        """The configuration with one axis at `value`, and no other but where that axis would not exist."""
        values = made_to_exist({key: value}, self.conditions)
        axes = {axis.key: axis for axis in self.axes}
        return self.config_for({each: axes[each].decode(param) for each, param in values.items()})

    def config_for(self, values: dict[str, Any]) -> SweepConfig:
        """The checked configuration with `values` (axis key → value) applied, never by way of strings.

        Raises UserError where they contradict each other or the rest.
        """
        is_group = {axis.key: axis.group for axis in self.axes}
        cfg = copy.deepcopy(self.composer.compose({k: v for k, v in values.items() if is_group.get(k)}))
        OmegaConf.update(cfg, "search.space", [str(axis) for axis in self.axes])
        OmegaConf.update(cfg, "search.when", self.config.search.when, merge=False)
        for key, value in values.items():
            if not is_group.get(key):
                _put(cfg, key, value)
        return _capped(resolve(cfg), self.depth)


def _put(cfg: Any, key: str, value: Any) -> None:
    try:
        OmegaConf.update(cfg, key, value, merge=False)
    except OmegaConfBaseException as error:
        raise explain(error, KEYS) from None


def make_job(overrides: list[str], config_dir: str | None = None, quiet: bool = False) -> Job:
    """The search that the overrides ask for; every choice or end of its axes is checked."""
    plain, sweeps = split(overrides)
    composer = Composer(texts_of(plain), config_dir)
    written = written_keys(plain)
    flags = [*(["--quiet"] if quiet else []), *(["--config-dir", config_dir] if config_dir else [])]
    axes = _axes(composer, sweeps, written)
    _check_methods(composer, axes)
    job = Job(resolve(composer.compose()), axes, written, [*flags, *overrides], composer, quiet=quiet)
    job.config.search.when, job.axes = _settled(job, plain)
    if job.config.resume is not None:
        raise UserError(f"resume={job.config.resume}: one trial goes on by itself, lora-sweep train resume=…")
    if job.config.adapter_path is not None:
        raise UserError(
            f"adapter_path={job.config.adapter_path}: each trial of a search has a folder of its own, in output_dir. "
            "Leave it out."
        )
    if not job.axes:
        raise UserError("There is nothing to search: give an axis, such as lora_parameters.rank=4,8,16")
    job.config = job.config_for({})
    check_conditions(job.config.search.sampler["name"], job.conditions)
    check_warm_start(job.config.search.sampler["name"], job.config.search.warm_start)
    _check_axes(job)
    check_enqueued(job.config.search.enqueue, job.axes, job.conditions)
    return job


def _settled(job: Job, plain: list[Override]) -> tuple[dict[str, str] | None, list[Axis]]:
    """Conditions and axes, less what one value for a key settles; those that the user has written stay."""
    when = job.config.search.when or {}
    said = [override.value() for override in plain if override.key_or_group == "search.when"]
    own = {key: text for key, text in when.items() if any(key in each for each in said if isinstance(each, dict))}
    packaged = {key: text for key, text in when.items() if key not in own}
    fixed = {key: OmegaConf.select(job.composer.compose(), key) for key in job.written}
    left, axes = settled(packaged, job.axes, fixed)
    return {**left, **own} or None, axes


def _check_methods(composer: Composer, axes: list[Axis]) -> None:
    """Before the configuration is checked as a whole: that without an axis need not be one that can be trained."""
    sampler, pruner = (
        OmegaConf.select(composer.compose(), f"search.{part}.name", default="") for part in ("sampler", "pruner")
    )
    objectives = OmegaConf.select(composer.compose(), "search.objectives")
    check_methods(sampler, pruner, axes, len(objectives) if isinstance(objectives, ListConfig) else 1)


def shown_overrides(overrides: list[str], config_dir: str | None = None) -> list[str]:
    """Plain overrides under which Hydra shows the search: its axes are in search.space."""
    plain, sweeps = split(overrides)
    axes = _axes(Composer(texts_of(plain), config_dir), sweeps, written_keys(plain))
    return [*texts_of(plain), f"search.space={hydra_text([str(axis) for axis in axes])}"]


def split(argv: list[str]) -> tuple[list[Override], list[Override]]:
    """Plain overrides, and sweeps. Raises UserError for a sweep whose key is given twice."""
    overrides = parse(argv)
    plain = [override for override in overrides if not override.is_sweep_override()]
    sweeps = [override for override in overrides if override.is_sweep_override()]
    taken = written_keys(plain)
    for override in sweeps:
        if override.key_or_group in taken:
            raise UserError(f"{override.input_line}: {override.key_or_group} is given twice. Keep one.")
        taken.add(override.key_or_group)
    return plain, sweeps


def texts_of(overrides: list[Override]) -> list[str]:
    """The overrides as typed."""
    return [str(override.input_line) for override in overrides]


def written_keys(plain: list[Override]) -> set[str]:
    """The keys and groups that plain overrides set."""
    return {override.key_or_group for override in plain}


def _axes(composer: Composer, sweeps: list[Override], written: set[str]) -> list[Axis]:
    """Packaged axes, replaced and completed by `sweeps`, less those whose key has one written value."""
    axes = {axis.key: axis for axis in _packaged(composer, written)}
    for override in sweeps:
        axis = axis_from(override, KEYS, composer.groups)
        axes[axis.key] = replace(axis, written=True)
    if "train_type" not in axes and OmegaConf.select(composer.compose(), "train_type") == "full":
        return _without_adapters(axes.values())
    return list(axes.values())


def _without_adapters(axes: Iterable[Axis]) -> list[Axis]:
    """Packaged axes over settings of adapters are taken out; a written one is refused."""
    about = [axis for axis in axes if under(axis.key, OF_ADAPTERS_ALONE)]
    for axis in about:
        if axis.written:
            raise UserError(f"Axis {axis}: train_type=full has no adapters, so nothing would differ. Leave it out.")
    return [axis for axis in axes if axis not in about]


def _packaged(composer: Composer, written: set[str]) -> list[Axis]:
    space = OmegaConf.select(composer.compose(), "search.space")
    found: dict[str, Axis] = {}
    for override in parse([str(text) for text in space] if isinstance(space, ListConfig) else []):
        if not override.is_sweep_override():
            raise UserError(f"search.space: {override.input_line} is one value, not an axis.")
        axis = axis_from(override, KEYS, composer.groups)
        if axis.key in found:
            raise UserError(f"search.space: {axis.key} is an axis twice. Keep one of them.")
        found[axis.key] = replace(axis, written="search.space" in written)
    return [axis for axis in found.values() if axis.key not in written]


def _check_axes(job: Job) -> None:
    """Tries every choice and end on its own, then all first and all last ones together."""
    configs = [job.config]
    for axis in job.axes:
        for value in axis.corners():
            with _naming([axis]):
                config = job.config_at(axis.key, value)
                configs.append(config)
                _check_shared(job, axis, config)
                _check_length(job, config)
                check_resumed(job.axes, axis, config)
    for corner in (0, -1):
        with _naming(job.axes):
            values = {axis.key: axis.corners()[corner] for axis in job.axes}
            job.config_for(present(values, job.conditions))
    check_fitted(job.written, configs)
    check_has_adapters(job.written, configs)


@contextmanager
def _naming(axes: list[Axis]) -> Iterator[None]:
    """Says which axis an error comes from, and how to be rid of one that was not asked for."""
    try:
        yield
    except UserError as error:
        where = f"Axis {axes[0]}: " if len(axes) == 1 else "Axes: "
        packaged = [axis.key for axis in axes if not axis.written and axis.key in str(error)]
        hint = f"\nThe axis {packaged[0]} is packaged: one plain value for it takes it out." if packaged else ""
        raise UserError(f"{where}{error}{hint}") from None


def _check_shared(job: Job, axis: Axis, config: SweepConfig) -> None:
    """A group's option may set any key, but not one that all trials share."""
    if axis.group:
        ours, theirs = flat(job.config.to_dict()), flat(config.to_dict())
        for key in ours.keys() | theirs.keys():
            if is_fixed(key) and ours.get(key) != theirs.get(key):
                raise UserError(f"its options differ in {key}, which all trials of a study share.")


def _check_length(job: Job, config: SweepConfig) -> None:
    """A group's option must not make steps differ either, if there is a pruner."""
    ours, theirs, pruner = flat(job.config.to_dict()), flat(config.to_dict()), config.search.pruner["name"]
    for key in LENGTH:
        if ours[key] != theirs[key] and pruner != "none":
            raise UserError(no_pruner(pruner, key))


def cap_num_layers(job: Job, depth: int) -> tuple[Job, list[str]]:
    """The job for a model of `depth` blocks, and what had to be changed, in one line.

    Raises UserError for a num_layers from the command line that the model does not have.
    """
    config, notes = cap_config(job.config, job.written, depth)
    axes = []
    for axis in job.axes:
        capped = _capped_axis(axis, depth) if axis.key == "num_layers" else axis
        axes += [capped] if capped else []
        if capped != axis:
            notes = [f"{axis} → {capped or depth}: the model has {depth} blocks."]
    check_enqueued(config.search.enqueue, axes, conditions_of(config.search.when, axes))
    return replace(job, config=config, axes=axes, depth=depth), notes


def cap_config(config: SweepConfig, written: set[str], depth: int) -> tuple[SweepConfig, list[str]]:
    """The same for one configuration; `written` are the keys set on the command line."""
    layers = config.num_layers
    if isinstance(layers, int) and (layers < 1 or (layers > depth and "num_layers" in written)):
        raise UserError(f"num_layers is {layers}: expected 1 to {depth}, the blocks of the model, or all.")
    capped = _capped(config, depth)
    changed = capped.num_layers != layers
    return capped, [f"num_layers {layers} → {depth}: the model has {depth} blocks."] if changed else []


def _capped(config: SweepConfig, depth: int | None) -> SweepConfig:
    if depth is None or config.num_layers == "all" or int(config.num_layers) <= depth:
        return config
    return replace(config, num_layers=depth)


def _capped_axis(axis: Axis, depth: int) -> Axis | None:
    """The part of a num_layers axis that the model has; None where nothing is left."""
    wrong = [value for value in axis.corners() if value != "all" and not 1 <= value <= depth]
    if any(value < 1 for value in wrong) or (wrong and axis.written):
        raise UserError(f"Axis {axis}: expected 1 to {depth}, the blocks of the model, or all.")
    if not wrong:
        return axis
    if axis.choices is not None:
        # All blocks by number are the same setting as `all`.
        most = depth - 1 if "all" in axis.choices else depth
        kept = [value for value in axis.choices if value == "all" or value <= most]
        return replace(axis, choices=kept) if kept else None
    low, step = int(axis.low or 1), int(axis.step or 1)
    return replace(axis, high=low + (depth - low) // step * step) if low <= depth else None
