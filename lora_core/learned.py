"""What trials learn, by `train_type`: which arrays, how they lie in files, and what the model is with them.

The engine asks `AdaptedLayers` about lora and dora, `OwnWeights` about full; both answer the same questions. What was
learned is a dictionary by site.index or, of the model's own weights, by place in the list of them.
"""

import math
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import mlx.core as mx

from lora_core import adapters, full, layers
from lora_core.adapter_files import adapter_config, load_adapter, named
from lora_core.adapter_folder import Stored
from lora_core.adapters import Site
from lora_core.config import TrainConfig, loads_in_mlx_lm
from lora_core.errors import UserError
from lora_core.full import FullPack, Weight
from lora_core.fuse import fuse, write_model
from lora_core.keys import check_keys
from lora_core.layers import Weights
from lora_core.models import Base
from lora_core.pack import Pack
from lora_core.resume import Start, refitted, refitted_full, rescaled
from lora_core.slot import adapts
from lora_core.split import Split
from lora_core.step import Computation

DORA_NOTE = "mlx_lm cannot load DoRA over 3, 5 or 6 bits: use the merged model, which fuse=true writes."

Learned = dict[int, Weights]
AnyPack = Pack | FullPack


class AdaptedLayers:
    """Adapters beside `sites`, or those of them that a trial adapts."""

    def __init__(self, base: Base, split: Split, sites: Sequence[Site]) -> None:
        self.base, self.split, self.sites = base, split, sites
        self._packs: dict[Hashable, Pack] = {}

    def check(self, config: TrainConfig) -> list[str]:
        """Raises UserError for what the model does not allow; returns notes."""
        check_keys(config.lora_parameters.keys, self.base.info.linear_keys)
        if config.train_type != "dora":
            return []
        if any(isinstance(site.module, layers.ExpertLora) for site in self.of(config)):
            raise UserError(
                "train_type=dora: layers of experts take LoRA alone. Leave them out by lora_parameters.keys."
            )
        return [] if loads_in_mlx_lm(config.train_type, self.base.info.bits) else [DORA_NOTE]

    def of(self, config: TrainConfig) -> list[Site]:
        """The layers that a trial adapts."""
        bottom = config.bottom(self.base.info.depth)
        return [site for site in self.sites if adapts(config, bottom, site)]

    def parameters(self, config: TrainConfig) -> int:
        """How many a trial trains."""
        shapes = [site.module.shapes() for site in self.of(config)]
        rows = sum(b[-1] for _, b in shapes) if config.train_type == "dora" else 0
        return config.lora_parameters.rank * sum(math.prod(a) + math.prod(b) for a, b in shapes) + rows

    def pack(self, config: TrainConfig, computation: Computation, feed: Hashable, joins: bool) -> Pack:
        """The one that a trial shares with all like it; `joins`: also with trials of other depths."""
        lora, trainer = config.lora_parameters, config.trainer
        depth = None if joins else config.bottom(self.base.info.depth)
        key = (
            feed, depth, config.train_type, lora.dropout_on, lora.compute_dtype, trainer.grad_checkpoint,
            trainer.grad_accumulation,
        )  # fmt: skip
        if key not in self._packs:
            self._packs[key] = Pack(computation, self.sites, config)
        return self._packs[key]

    def load(self, stored: Stored, config: TrainConfig) -> Learned:
        """From what is stored, which must fit; raises UserError."""
        sites, dora = self.of(config), config.train_type == "dora"
        rank, base = config.lora_parameters.rank, self.base.info.fingerprint
        loaded = load_adapter(stored, self.split, sites, rank, dora, base)
        return {site.index: weights for site, weights in zip(sites, loaded, strict=True)}

    def resumed(self, stored: Stored, config: TrainConfig) -> Start:
        """From what is stored, which must fit, with the ΔW that it has there."""
        return rescaled(stored, self.load(stored, config), config)

    def refitted(self, stored: Stored, config: TrainConfig, repeat: int) -> Start:
        """From what is stored, made to fit."""
        return refitted(stored, self.split, self.of(config), config, repeat, self.base.info.fingerprint)

    def saved(self, learned: Learned, config: TrainConfig) -> tuple[dict[str, mx.array], dict[str, Any]]:
        """The tensors by name, and what `adapter_config.json` says of them."""
        sites = self.of(config)
        tensors = named(self.split, sites, [learned[site.index] for site in sites])
        return dict(tensors), adapter_config(config, sites, self.base.info)

    def carried(self, learned: Learned, config: TrainConfig) -> AbstractContextManager[None]:
        """Inside the `with` the model is what was learned."""
        sites, multiplier = self.of(config), config.lora_parameters.multiplier
        return adapters.activated(sites, [adapters.alone(site, learned[site.index], multiplier) for site in sites])

    def fuse(self, learned: Learned, config: TrainConfig, folder: Path) -> float:
        """Writes the model that has learned it to `folder`; returns the error of `fuse`."""
        multiplier = config.lora_parameters.multiplier
        return fuse(folder, self.base, self.split.blocks, self.of(config), list(learned.values()), multiplier)


class OwnWeights:
    """Weights of the model itself."""

    def __init__(self, base: Base, split: Split) -> None:
        self.base, self.split = base, split

    def check(self, config: TrainConfig) -> list[str]:
        """Raises UserError for what the model does not allow; returns notes."""
        if self.base.info.bits:
            raise UserError(
                f"train_type=full: the base model is quantised to {self.base.info.bits} bits, which no gradient step "
                "can change.\nTrain adapters (lora, dora), or give a model.path in full precision."
            )
        return []

    def of(self, config: TrainConfig) -> list[Weight]:
        """Those that a trial trains."""
        bottom = config.bottom(self.base.info.depth)
        return full.trained_weights(self.split, bottom, config.num_layers == "all")

    def parameters(self, config: TrainConfig) -> int:
        """How many a trial trains."""
        return sum(weight.array.size for weight in self.of(config))

    def pack(self, config: TrainConfig, computation: Computation, feed: Hashable, joins: bool) -> FullPack:
        """One of the trial's own."""
        return FullPack(computation, self.of(config), config.num_layers == "all")

    def load(self, stored: Stored, config: TrainConfig) -> Learned:
        """From what is stored, which must fit; raises UserError."""
        return full.load_weights(stored, self.of(config), self.base.info.fingerprint)

    def resumed(self, stored: Stored, config: TrainConfig) -> Start:
        """From what is stored, which must fit."""
        return Start(self.load(stored, config))

    def refitted(self, stored: Stored, config: TrainConfig, repeat: int) -> Start:
        """From what is stored, made to fit."""
        return refitted_full(stored, self.of(config), self.base.info.fingerprint)

    def saved(self, learned: Learned, config: TrainConfig) -> tuple[dict[str, mx.array], dict[str, Any]]:
        """The tensors by name, in the model's own dtype, as they were evaluated; and what `adapter_config.json` says of
        them."""
        found = enumerate(self.of(config))
        tensors = {weight.name: learned[place][0].astype(weight.array.dtype) for place, weight in found}
        return tensors, adapter_config(config, [], self.base.info)

    def carried(self, learned: Learned, config: TrainConfig) -> AbstractContextManager[None]:
        """Inside the `with` the model is what was learned."""
        return full.carrying(self.of(config), [weight for (weight,) in learned.values()])

    def fuse(self, learned: Learned, config: TrainConfig, folder: Path) -> float:
        """Writes the model that has learned it to `folder`: what was evaluated, to the bit."""
        with self.carried(learned, config):
            write_model(folder, self.base, self.split.blocks)
        return 0.0
