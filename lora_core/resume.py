"""What a trial starts from where `resume_adapter_file` says so: the same ΔW, whatever multiplies B·A here. With
`resume_strict: false` it need not be an adapter of this run's rank and layers: it is made one, as far as there is room.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from lora_core.adapter_files import weights_of
from lora_core.adapter_folder import CONFIG, Stored, check_base
from lora_core.adapters import Draw, Site, initial
from lora_core.config import TrainConfig
from lora_core.errors import UserError
from lora_core.full import Weight
from lora_core.layers import Weights
from lora_core.split import Split
from lora_core.stacks import State

NOTHING = 1e-6  # of the largest singular value: of a smaller one nothing would be learned


@dataclass
class Start:
    """`weights` by site.index or place; `error`: |ΔW lost| / |ΔW| where the rank is smaller than the file's; `notes`:
    lines to show."""

    weights: dict[int, Weights]
    error: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def state(self) -> dict[int, State]:
        """The weights with zero moments."""
        zeros = {index: tuple(map(mx.zeros_like, weights)) for index, weights in self.weights.items()}
        return {index: (weights, zeros[index], zeros[index]) for index, weights in self.weights.items()}


def rescaled(stored: Stored, weights: dict[int, Weights], config: TrainConfig) -> Start:
    """An adapter whose `weights` fit as they are. Where its B·A had another multiplier, B makes up for it, and a line
    says so."""
    named, wanted = stored.named, config.lora_parameters.multiplier
    if not stored.config:
        return Start(
            weights, notes=[f"{named} has no {CONFIG} beside it: its B·A is multiplied by {wanted:g}, as here."]
        )
    multiplier = _multiplier(stored, config.train_type)
    if math.isclose(multiplier, wanted, rel_tol=1e-9):
        return Start(weights)
    note = f"{named} multiplies B·A by {multiplier:g}, this run by {wanted:g}: B makes up for it, and ΔW is the same."
    factor = multiplier / wanted
    return Start({index: (a, factor * b, *lengths) for index, (a, b, *lengths) in weights.items()}, notes=[note])


def refitted(
    stored: Stored, split: Split, sites: Sequence[Site], config: TrainConfig, repeat: int, base: str | None
) -> Start:
    """An adapter as one of this run. A layer that it does not have begins as in any new trial.

    Raises UserError for one that can be none: of other layers altogether, of other widths, or not of this train_type.
    """
    named = stored.named
    check_base(stored.config, base, named)
    multiplier = _multiplier(stored, config.train_type)
    names = {site: f"{split.block_name(site.layer)}.{site.key}" for site in sites}
    draw = Draw(config.lora_parameters, config.seed, repeat)
    start, lost, whole = Start({}), 0.0, 0.0
    for site in sites:
        fresh = _fresh(site, draw, config.train_type == "dora")
        own = weights_of(stored.tensors, names[site], site)
        if own:
            _check_widths(own, fresh, f"{named}: {names[site]}")
            fresh, squares = _fitted(own, fresh, site, multiplier, config.lora_parameters.multiplier)
            lost, whole = lost + squares[0], whole + squares[1]
        start.weights[site.index] = fresh
    start.notes = _differences(names.values(), stored.modules, named)
    if lost:
        start.error = float(np.sqrt(lost / whole))
        rank = max(tensor.shape[-1] for name, tensor in stored.tensors.items() if name.endswith(".lora_a"))
        start.notes.append(
            f"{named}: its rank {rank} is cut to {config.lora_parameters.rank}, which takes {100 * start.error:.2g} % "
            "of the size of ΔW."
        )
    return start


def refitted_full(stored: Stored, weights: Sequence[Weight], base: str | None) -> Start:
    """The same with `train_type: full`. Weights that are not in the file are the base model's."""
    named = stored.named
    check_base(stored.config, base, named)
    start = Start({})
    for place, weight in enumerate(weights):
        found, own = stored.tensors.get(weight.name), weight.array.astype(mx.float32)
        if found is not None and found.shape != own.shape:
            raise UserError(f"{named}: {weight.name} has the shape {found.shape}, expected {own.shape}.")
        start.weights[place] = (own if found is None else mx.array(found),)
    start.notes = _differences([weight.name for weight in weights], stored.tensors.keys(), named)
    return start


def _multiplier(stored: Stored, train_type: str) -> float:
    """Of B·A, as the file's run had it."""
    try:
        config = stored.mlx_config
    except UserError as error:
        raise UserError(f"{stored.named}: {error}") from None
    kind = config.get("fine_tune_type", "lora")
    if kind == "full" or (kind, train_type) == ("dora", "lora"):
        raise UserError(f"{stored.named} was made by train_type={kind}, which train_type={train_type} has no form of.")
    return float(config["lora_parameters"]["scale"])


def _fresh(site: Site, draw: Draw, dora: bool) -> Weights:
    return tuple(array[0, 0] for array in initial([site], [draw], draw.lora.rank, dora))


def _check_widths(own: Weights, fresh: Weights, named: str) -> None:
    found, expected = own[0].shape[:-1] + own[1].shape[-1:], fresh[0].shape[:-1] + fresh[1].shape[-1:]
    if found != expected:
        raise UserError(f"{named} is {' × '.join(map(str, found))}, expected {' × '.join(map(str, expected))}.")


def _fitted(
    own: Weights, fresh: Weights, site: Site, multiplier: float, wanted: float
) -> tuple[Weights, tuple[float, float]]:
    """The layer's weights of this run; and the squared sizes of what of ΔW was lost, and of ΔW."""
    a, b, *lengths = map(np.array, own)
    a, b, squares = resized(a, b * np.float32(multiplier / wanted), np.array(fresh[0]))
    weights = [mx.array(array) for array in (a, b, *lengths)]
    if len(fresh) > len(weights):  # DoRA from LoRA: of the lengths that the rows have now, so that nothing changes
        weights.append(site.module.lengths(weights[0][None], wanted * weights[1][None])[0])
    return tuple(weights), squares


def resized(a: np.ndarray, b: np.ndarray, fresh: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """A [in, r] and B [r, out] at the rank of `fresh`, another A. A smaller one takes what is nearest to A·B, a larger
    one A·B itself and columns of `fresh`. Also the squared sizes of what was lost of A·B, and of A·B."""
    rank, squares = fresh.shape[-1], (0.0, 0.0)
    if rank < a.shape[-1]:
        a, b, squares = _cut(a, b, fresh)
    missing = fresh[..., a.shape[-1] :]
    zeros = np.zeros((*b.shape[:-2], missing.shape[-1], b.shape[-1]), np.float32)
    return np.concatenate([a, missing], -1), np.concatenate([b, zeros], -2), squares


def _cut(a: np.ndarray, b: np.ndarray, fresh: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """By the singular values of A·B, which are those of an r × r matrix, half of each in either factor. Where there
    are too few of them, A is that of `fresh`: with zeros in both factors neither could ever be learned."""
    rank = fresh.shape[-1]
    left, upper = np.linalg.qr(a.astype(np.float64))
    right, lower = np.linalg.qr(b.swapaxes(-1, -2).astype(np.float64))
    u, s, v = np.linalg.svd(upper @ lower.swapaxes(-1, -2), full_matrices=False)
    kept = s[..., :rank]
    there, root = kept > NOTHING * s.max(), np.sqrt(kept)
    new_a = np.where(there[..., None, :], left @ (u[..., :rank] * root[..., None, :]), fresh[..., : kept.shape[-1]])
    new_b = np.where(there, root, 0)[..., None] * v[..., :rank, :] @ right.swapaxes(-1, -2)
    squares = float(np.square(s[..., rank:]).sum()), float(np.square(s).sum())
    return new_a.astype(np.float32), new_b.astype(np.float32), squares


def _differences(here: Iterable[str], there: Iterable[str], named: str) -> list[str]:
    """Lines on what only one side has. Raises UserError if they have nothing in common."""
    here, there = set(here), set(there)
    if not here & there:
        raise UserError(f"{named} has nothing of what is trained here: found {_ends(there)}, expected {_ends(here)}.")
    lines = []
    if new := here - there:
        lines.append(f"{named} has nothing for {len(new)} of this run, which begin as ever: {_ends(new)}")
    if extra := there - here:
        lines.append(f"{named} has {len(extra)} that this run leaves out: {_ends(extra)}")
    return lines


def _ends(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first} … {others[-1]}" if others else first
