"""Trains trials in slots over one frozen base model. One call of `advance` is one optimizer step of a pack.

A trial's result depends on its own configuration alone: its step i uses batch i of a data order made from
(seed, repeat), its adapters and dropout come from keys of its own, and its rows meet no other slot's rows.
"""

import math
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from lora_core import adapters, backend
from lora_core.adapter_files import Adapter, adapter_config, load_adapter, save_adapter
from lora_core.batches import Batch, order, steps_for
from lora_core.config import TrainConfig, check
from lora_core.data import Dataset
from lora_core.feed import Feed
from lora_core.fuse import fuse
from lora_core.head import head_losses
from lora_core.models import Base
from lora_core.pack import Pack, wanted
from lora_core.prefix import PrefixCache
from lora_core.slot import Slot, Stopwatch
from lora_core.split import Split, Whole, choose_split
from lora_core.step import Computation
from lora_core.trial import Ended, Evaluated, TrialSpec


class Engine:
    """`slots` trials at once on one base model and one dataset. `events` collects what happened, oldest first."""

    def __init__(self, base: Base, data: Dataset, slots: int) -> None:
        self.base = base
        self.data = data
        self.notes: list[str] = []
        self.events: list[Evaluated | Ended] = []
        self.steps = self.tokens = 0  # over all slots
        self.split = self._split()
        self.sites = adapters.install(self.split.blocks, base.info.linear_keys)
        self.slots = self._slots(slots)
        self.computation = Computation(self.split, head_losses(self.split))
        self.prefixes = PrefixCache(self.split)
        self.running: list[tuple[Slot, Pack, Feed]] = []
        self._feeds: dict[Hashable, Feed] = {}
        self._packs: dict[Hashable, Pack] = {}
        self._unheard: list[tuple[list[Slot], mx.array]] = []  # steps not waited for yet
        self._watch = Stopwatch()

    @property
    def free(self) -> int:
        return self.slots - len(self.running)

    def check(self, config: TrainConfig) -> None:
        """Raises UserError for what only the model or the data can tell."""
        check(config)
        adapters.check_keys(config.lora_parameters.keys, self.base.info.linear_keys)
        self._resumed(config, self._depth(config))

    def start(self, spec: TrialSpec) -> None:
        """Puts a trial into a free slot and evaluates it before its first step."""
        config = TrainConfig.from_dict(spec.config)
        self.check(config)
        feed, depth = self.feed(config), self._depth(config)
        slot = Slot(spec, config, depth, self._order(spec, config, feed))
        pack = self._pack(config, depth, feed)
        resumed = self._resumed(config, depth)
        pack.add(slot, resumed)
        self.running.append((slot, pack, feed))
        if resumed is None:
            # B = 0: the model is the base model to the bit, whose loss is computed once.
            if feed.base_loss is None:
                feed.base_loss = self._validation_losses([slot], pack, feed)[0]
            self._note(slot, pack, feed.base_loss)
        else:
            self._evaluate([slot], pack, feed)
        self._finish_ended([(slot, pack, feed)])
        self._watch.lap()

    def stop(self, name: str) -> None:
        """Ends a running trial as pruned, keeping its best checkpoint."""
        for slot, pack, _ in list(self.running):
            if slot.spec.name == name:
                self._end(slot, pack, "pruned", "beaten at the same step by earlier trials")

    def advance(self) -> None:
        """One optimizer step of the trial that is furthest behind and of all that can share it."""
        _, pack, feed = min(self.running, key=lambda entry: entry[0].step)
        due = self._due(pack, feed)
        batches = [self._next_batch(slot, feed) for slot in due]
        self._unheard.append((due, pack.step(due, feed.rows(batches, "train", pack.boundary))))
        for slot, batch in zip(due, batches, strict=True):
            slot.took_step(batch.tokens)
            self.steps, self.tokens = self.steps + 1, self.tokens + batch.tokens
        if any(slot.check_due for slot in due):
            self._listen()
            pack.read_alive()
            self._evaluate([slot for slot in due if slot.alive and slot.evaluation_due], pack, feed)
            self._finish_ended([(slot, pack, feed) for slot in due])
            self._watch.lap()

    def _due(self, pack: Pack, feed: Feed) -> list[Slot]:
        """The slots of the pack that go next: those of the padded length that most of them wait for. A slot that
        waits for a rarer one goes when others have come to it too; among equals, that of the least advanced."""
        waiting: dict[int, list[Slot]] = {}
        for slot in pack.slots:
            waiting.setdefault(self._next_batch(slot, feed).length, []).append(slot)
        return max(waiting.values(), key=lambda slots: (len(slots), -min(slot.step for slot in slots)))

    def _listen(self) -> None:
        """Waits for the steps handed to the device, and shares their losses and the time they took."""
        heard = [(due, losses.tolist()) for due, losses in self._unheard]
        share = self._watch.lap() / sum(len(due) for due, _ in heard)
        for due, losses in heard:
            for slot, loss in zip(due, losses, strict=True):
                slot.heard(loss, share)
        self._unheard.clear()

    def feed(self, config: TrainConfig) -> Feed:
        """The batches that a trial of this configuration trains and is evaluated on."""
        trainer = config.trainer
        key = (trainer.batch_size, trainer.eval_rows)
        if key not in self._feeds:
            self._feeds[key] = Feed(self.data, self.prefixes, *key)
        return self._feeds[key]

    def fuse(self, adapter_folder: Path, config: TrainConfig, folder: Path) -> Path:
        """Merges a saved adapter into the base model and writes it to `folder`."""
        sites = self._sites(config, self._depth(config))
        lora = config.lora_parameters
        adapter = load_adapter(str(adapter_folder), self.split, sites, lora.rank)
        return fuse(folder, self.base, self.split.blocks, sites, adapter, lora.multiplier)

    def _split(self) -> Split | Whole:
        split, note = choose_split(self.base.model)
        self.notes += [note] if note else []
        return split

    def _slots(self, slots: int) -> int:
        if slots > 1 and not adapters.packable(self.sites):
            self.notes.append("Trials run one at a time: this model's experts mix the rows of a batch.")
            return 1
        return slots

    def _order(self, spec: TrialSpec, config: TrainConfig, feed: Feed) -> np.ndarray:
        if spec.role == "base":
            return np.empty(0, dtype=np.int64)
        steps = steps_for(config.trainer, len(feed.train))
        return order(len(feed.train), steps, config.seed, spec.repeat)

    def _depth(self, config: TrainConfig) -> int:
        return self.base.info.depth if config.num_layers == "all" else int(config.num_layers)

    def _sites(self, config: TrainConfig, depth: int) -> list[adapters.Site]:
        """The layers that the trial itself adapts."""
        return [s for s in self._pack_sites(depth) if wanted(config, s)]

    def _pack_sites(self, depth: int) -> list[adapters.Site]:
        return [site for site in self.sites if site.layer >= self.base.info.depth - depth]

    def _pack(self, config: TrainConfig, depth: int, feed: Feed) -> Pack:
        lora = config.lora_parameters
        key = (feed.key, depth, lora.dropout_on, lora.compute_dtype)
        if key not in self._packs:
            boundary = 0 if isinstance(self.split, Whole) else self.base.info.depth - depth
            self._packs[key] = Pack(self.computation, self._pack_sites(depth), boundary, config)
        return self._packs[key]

    def _resumed(self, config: TrainConfig, depth: int) -> list[tuple[mx.array, mx.array]] | None:
        """A and B for every site of the pack, zeros where the trial has none of its own."""
        if config.resume_adapter_file is None:
            return None
        own, rank = self._sites(config, depth), config.lora_parameters.rank
        loaded = load_adapter(config.resume_adapter_file, self.split, own, rank)
        by_index = {site.index: pair for site, pair in zip(own, loaded, strict=True)}
        return [by_index.get(site.index) or _zeros(site, rank) for site in self._pack_sites(depth)]

    def _next_batch(self, slot: Slot, feed: Feed) -> Batch:
        return feed.train[slot.order[slot.step]]

    def _evaluate(self, due: list[Slot], pack: Pack, feed: Feed) -> None:
        if due:
            for slot, loss in zip(due, self._validation_losses(due, pack, feed), strict=True):
                self._note(slot, pack, loss)

    def _validation_losses(self, due: list[Slot], pack: Pack, feed: Feed) -> list[float]:
        """Mean loss over all counted tokens of the validation set, by slot."""
        sums = np.zeros(len(due))
        for batch in feed.valid:
            rows = feed.rows([batch] * len(due), "valid", pack.boundary)
            sums += np.array(pack.evaluate(due, rows).tolist())
        return (sums / sum(batch.tokens for batch in feed.valid)).tolist()

    def _note(self, slot: Slot, pack: Pack, loss: float) -> None:
        slot.alive = slot.alive and math.isfinite(loss)
        improved = slot.step > 0 and loss < slot.best
        adapter = pack.adapter(slot) if improved else None
        mx.eval(adapter or [])
        self.events.append(Evaluated(slot.spec.name, slot.evaluated(loss, adapter)))

    def _finish_ended(self, entries: Sequence[tuple[Slot, Pack, Feed]]) -> None:
        for slot, pack, _ in entries:
            verdict = slot.verdict
            if verdict is not None:
                self._end(slot, pack, *verdict)

    def _end(self, slot: Slot, pack: Pack, state: str, reason: str | None) -> None:
        digest, metrics = None, {**slot.metrics(), **self._costs(slot, pack)}
        if slot.spec.role == "base":
            metrics = {"best_val_loss": slot.last, "final_val_loss": slot.last, "val_perplexity": math.exp(slot.last)}
        elif slot.best_adapter is not None:
            digest = self._save(slot, pack)
            metrics["adapter_mb"] = (slot.adapter_path / "adapters.safetensors").stat().st_size / 1e6
        record = slot.end(state, reason, metrics, digest)
        self.running = [entry for entry in self.running if entry[0] is not slot]
        pack.remove(slot)
        self.events.append(Ended(slot.spec.name, vars(record).copy()))

    def _save(self, slot: Slot, pack: Pack) -> str:
        kept: list[tuple[adapters.Site, Any]] = [
            (site, pair) for site, pair in zip(pack.sites, slot.best_adapter, strict=True) if wanted(slot.config, site)
        ]
        sites = [site for site, _ in kept]
        adapter: Adapter = [pair for _, pair in kept]
        config = adapter_config(slot.config, slot.depth, sites, self.base.info.folder)
        return save_adapter(slot.adapter_path, self.split, sites, adapter, config)

    def _costs(self, slot: Slot, pack: Pack) -> dict[str, float]:
        rank = slot.config.lora_parameters.rank
        own = [site for site in pack.sites if wanted(slot.config, site)]
        per_rank = sum(math.prod(a) + math.prod(b) for a, b in (site.module.shapes() for site in own))
        return {"trainable_params": rank * per_rank, "peak_memory_gb": backend.peak_memory_gb()}


def _zeros(site: adapters.Site, rank: int) -> tuple[mx.array, mx.array]:
    a, b = site.module.shapes()
    return mx.zeros((*a[:-1], rank)), mx.zeros((*b[:-2], rank, b[-1]))
