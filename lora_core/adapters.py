"""The layers of a model that carry adapters, which of them share an input, and what adapters are at the start."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from lora_core.config import LoraParameters
from lora_core.layers import Active, Down, ExpertLora, StackedLora, Weights, gain_of

EXPERTS = (SwitchLinear, QuantizedSwitchLinear)


@dataclass(frozen=True, eq=False)
class Site:
    """One adapted layer: `index` is the same for this layer in every pack, whatever its depth."""

    layer: int
    key: str  # block-relative name
    index: int
    module: StackedLora


def install(blocks: Sequence[nn.Module], keys: Sequence[str]) -> list[Site]:
    """Puts a StackedLora around every layer named in `keys` (all linear layers of the model) in every block."""
    sites = []
    for layer, block in enumerate(blocks):
        found = {name: module for name, module in block.named_modules() if name in keys}
        wrapped = {name: _wrap(module) for name, module in found.items()}
        block.update_modules(tree_unflatten(list(wrapped.items())))
        for name, module in wrapped.items():
            sites.append(Site(layer, name, layer * len(keys) + keys.index(name), module))
    return sites


def _wrap(module: nn.Module) -> StackedLora:
    if isinstance(module, StackedLora):
        return module  # by an earlier `install`: two engines may share a model
    return ExpertLora(module) if isinstance(module, EXPERTS) else StackedLora(module)


def remove(blocks: Sequence[nn.Module]) -> None:
    """Undoes `install`."""
    for block in blocks:
        plain = [(n, m.linear) for n, m in block.named_modules() if isinstance(m, StackedLora)]
        block.update_modules(tree_unflatten(plain))


def packable(sites: Sequence[Site]) -> bool:
    """Whether more than one slot can share a pass."""
    return not any(isinstance(site.module, ExpertLora) for site in sites)


def alone(site: Site, weights: Weights, multiplier: float) -> Active:
    """What a single trial has learned of a layer, for the layer to carry; nothing is dropped."""
    a, b, *magnitude = (array[None] for array in weights)
    b = multiplier * b
    return Active(a, b, gain=gain_of(magnitude[0], site.module.lengths(a, b)) if magnitude else None)


@contextmanager
def activated(sites: Sequence[Site], actives: Sequence[Active]) -> Iterator[None]:
    """The given layers carry the given adapters inside the `with`, and after it what they had before."""
    for family in _families(sites, actives):
        down = Down(family) if len(family) > 1 else None
        for active in family:
            active.down = down
    try:
        with _carrying(sites, actives):
            yield
    finally:
        for active in actives:
            active.down = None  # the two hold each other, and with each other the arrays of the pass


@contextmanager
def _carrying(sites: Sequence[Site], actives: Sequence[Any]) -> Iterator[None]:
    before = [site.module.active for site in sites]
    for site, active in zip(sites, actives, strict=True):
        site.module.active = active
    try:
        yield
    finally:
        for site, active in zip(sites, before, strict=True):
            site.module.active = active


def _families(sites: Sequence[Site], actives: Sequence[Active]) -> list[list[Active]]:
    """Those of layers that read the same input; dropout on the input makes it another one for each layer."""
    families: dict[object, list[Active]] = {}
    for site, active in zip(sites, actives, strict=True):
        alone = active.drop_input or site.module.reads is None
        families.setdefault(("site", site.index) if alone else site.module.reads, []).append(active)
    return list(families.values())


def find_shared_inputs(sites: Sequence[Site], run: Callable[[], object]) -> None:
    """Finds out which layers read the same input by looking on while `run` has the model run."""
    inputs: list[mx.array] = []

    def witness(site: Site) -> Callable[..., mx.array]:
        def look(x: mx.array, y: mx.array, *_: Any) -> mx.array:
            known = [number for number, other in enumerate(inputs) if other is x]
            site.module.reads = known[0] if known else len(inputs)
            if not known:
                inputs.append(x)
            return y

        return look

    plain = [site for site in sites if not isinstance(site.module, ExpertLora)]
    with _carrying(plain, [witness(site) for site in plain]):
        run()


class Draw(NamedTuple):
    """What decides the initial adapters of a trial."""

    lora: LoraParameters
    seed: int
    repeat: int

    def keys(self, site: Site) -> np.ndarray:
        """Of (seed, repeat, layer, j) for each column j of A, uint32 [r, 2]: they do not depend on the rank."""
        sequence = np.random.SeedSequence([self.seed, self.repeat, site.index])
        return sequence.generate_state(2 * self.lora.rank).reshape(-1, 2)

    def std(self, inputs: int) -> float:
        """√(1/(3·in)) unless `init_std` says otherwise."""
        return self.lora.init_std if self.lora.init_std is not None else (3 * inputs) ** -0.5


def initial(group: Sequence[Site], draws: Sequence[Draw | None], rank: int, dora: bool = False) -> Weights:
    """A ~ N(0, σ²) [L, m, …, in, R] and B = 0 [L, m, …, R, out] of L layers of one kind and m trials, float32, filled
    up with zeros to `rank`; with DoRA also m, the length of each row of W, [L, m, out]. All zero where a draw is None.

    Drawn at once: one array at a time, a pack's thousands of them take a second.
    """
    shape_a, shape_b = group[0].module.shapes()
    place, keys = np.zeros((len(group), len(draws), rank), dtype=np.int32), [np.zeros((0, 2), dtype=np.uint32)]
    count = 1  # of columns; column 0 is that of zeros
    for i, k in np.ndindex(place.shape[:2]):
        if (draw := draws[k]) is not None:
            keys.append(draw.keys(group[i]))
            place[i, k, : draw.lora.rank] = range(count, count + draw.lora.rank)
            count += draw.lora.rank
    normal = mx.vmap(lambda key: mx.random.normal(shape_a[:-1], key=key))
    drawn = [normal(mx.array(np.concatenate(keys)))] if count > 1 else []
    columns = mx.concatenate([mx.zeros((1, *shape_a[:-1])), *drawn])
    std = np.array([draw.std(shape_a[-2]) if draw else 0.0 for draw in draws], dtype=np.float32)
    a = mx.moveaxis(columns[mx.array(place)], 2, -1) * mx.array(std).reshape(-1, *[1] * len(shape_a))
    b = mx.zeros((*place.shape[:2], *shape_b[:-2], rank, shape_b[-1]))
    if not dora:
        return a, b
    drawing = mx.array([draw is not None for draw in draws])
    return a, b, mx.stack([site.module.lengths() for site in group])[:, None] * drawing[:, None]


def at_rank(weights: Weights, rank: int) -> Weights:
    """A and B cut to `rank` columns and rows, or filled up to it with zeros; what else there is has no rank."""
    a, b, *others = weights
    extra = max(0, rank - a.shape[-1])
    none: list[Any] = [(0, 0)] * (a.ndim - 2)
    wide_a, wide_b = mx.pad(a, [*none, (0, 0), (0, extra)]), mx.pad(b, [*none, (0, extra), (0, 0)])
    return wide_a[..., :rank], wide_b[..., :rank, :], *others
