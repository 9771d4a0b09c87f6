"""Trains trials in slots over one frozen base model. One call of `advance` is one optimizer step of a pack.

A trial's result depends on its own configuration alone: its step i uses batch i of a data order made from
(seed, repeat), its adapters and dropout come from keys of its own, and its rows meet no other slot's rows.
"""

import math
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np

from lora_core import adapters, backend, checkpoint
from lora_core.adapter_folder import read
from lora_core.batches import Batch, order, steps_for
from lora_core.config import TrainConfig, check
from lora_core.data import Dataset
from lora_core.ending import leaving
from lora_core.feed import Feed
from lora_core.frozen import freeze_norms
from lora_core.head import head_losses
from lora_core.learned import AdaptedLayers, AnyPack, OwnWeights
from lora_core.models import Base
from lora_core.prefix import PrefixCache
from lora_core.resume import Start
from lora_core.slot import Slot, Stopwatch
from lora_core.split import Split, Whole, choose_split
from lora_core.stacks import State
from lora_core.step import Computation, Rows
from lora_core.trial import Ended, Evaluated, TrialSpec

SAVE_EVERY = 30.0  # seconds between two checkpoints of the running trials, or more,
SAVE_SHARE = 0.02  # so that they take no more than this share of the time
WRITERS = 8  # trials whose last files are written at the same time
BEATEN = "beaten at the same step by earlier trials"
AHEAD = 16  # batches that frozen blocks may see before their turn
PREFIX_SHARE = 0.125  # of the device's memory, for hidden states after frozen blocks


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
        freeze_norms(self.split.blocks)
        if not backend.is_cpu():  # where wider products change bits, and gain nothing
            adapters.find_shared_inputs(self.sites, lambda: self.split.suffix(mx.zeros((1, 1), mx.int32), None, 0))
        self.slots = self._slots(slots)
        self.computation = Computation(self.split, head_losses(self.split))
        self.prefixes = PrefixCache(self.split, int(PREFIX_SHARE * backend.memory()))
        self.joins = self.split.joins  # trials of different depth share a pack
        self.running: list[tuple[Slot, AnyPack, Feed]] = []
        self._feeds: dict[Hashable, Feed] = {}
        self._own, self._adapted = OwnWeights(base, self.split), AdaptedLayers(base, self.split, self.sites)
        self._writers = ThreadPoolExecutor(WRITERS)
        self._unheard: list[tuple[list[Slot], mx.array]] = []  # steps not waited for yet
        self._watch = Stopwatch()
        self.save_every = SAVE_EVERY
        self._saved = time.monotonic()
        backend.reset_peak_memory()  # loading is over

    @property
    def free(self) -> int:
        return self.slots - len(self.running)

    def check(self, config: TrainConfig) -> None:
        """Raises UserError for what only the model, the data or `resume_adapter_file` can tell."""
        self._check(config)
        start = self._resumed(config)
        self._say(start.notes if start else [])

    def _check(self, config: TrainConfig) -> None:
        check(config)
        self._say(self.learned(config).check(config))

    def _say(self, notes: list[str]) -> None:
        self.notes += [note for note in notes if note not in self.notes]

    def learned(self, config: TrainConfig) -> AdaptedLayers | OwnWeights:
        """Whom to ask about what such a trial learns."""
        return self._own if config.train_type == "full" else self._adapted

    def place(self, spec: TrialSpec, config: TrainConfig) -> tuple[Slot, AnyPack, Feed]:
        """The trial's slot, not in the pack yet, the pack it shares, and the batches it trains on."""
        feed = self.feed(config)
        slot = Slot(spec, config, config.bottom(self.base.info.depth), self._order(spec, config, feed))
        return slot, self.learned(config).pack(config, self.computation, feed.key, self.joins), feed

    def start(self, spec: TrialSpec) -> None:
        """Puts a trial into a free slot and evaluates it before its first step."""
        config = TrainConfig.from_dict(spec.config)
        self._check(config)
        slot, pack, feed = self.place(spec, config)
        if (saved := checkpoint.load(slot)) is not None:
            return self._go_on(slot, pack, feed, saved, slot.folder)
        if spec.goes_on_from is not None:
            kept = Path(spec.goes_on_from)
            return self._go_on(slot, pack, feed, checkpoint.load_kept(slot, kept), kept)
        start = self._resumed(config, spec.repeat)
        slot.begin()
        slot.resume_error = start.error if start else 0.0
        pack.add(slot, start.state if start else None)
        self.running.append((slot, pack, feed))
        if start is None:
            # B = 0: the model is the base model to the bit, whose loss is computed once.
            if feed.base_loss is None:
                feed.base_loss = self.mean_losses([slot], pack, feed, "valid")[0]
            self._note(slot, pack, feed.base_loss)
        else:
            self._evaluate([slot], pack, feed)
        self._finish_ended([(slot, pack, feed)])
        self._watch.lap()

    def _go_on(self, slot: Slot, pack: AnyPack, feed: Feed, state: dict[int, State], folder: Path) -> None:
        """Continues a trial from the checkpoint in `folder`."""
        slot.begin(again=True)
        self.events += [Evaluated(slot.spec.name, row, again=True) for row in checkpoint.rows(slot, folder)]
        pack.add(slot, state)
        self.running.append((slot, pack, feed))
        self._finish_ended([(slot, pack, feed)])  # its state may be that of its end

    def stop(self, name: str, reason: str = BEATEN) -> None:
        """Ends a running trial as pruned, keeping its best checkpoint."""
        for slot, pack, _ in list(self.running):
            if slot.spec.name == name:
                self._end([(slot, pack, "pruned", reason)])

    def advance(self) -> None:
        """One optimizer step of the trial that is furthest behind and of all in its pack, those whose next batch has
        the same padded length together. Trials that are due to be evaluated wait for those that run with them: a
        device evaluates several in little more time than one."""
        behind = [entry for entry in self.running if not entry[0].waits]
        if behind:
            _, pack, feed = min(behind, key=lambda entry: entry[0].step)
            for due in self._alike(pack, feed):
                self._step(due, pack, feed)
        self._evaluate_waiting()

    def _alike(self, pack: AnyPack, feed: Feed) -> list[list[Slot]]:
        """The pack's slots that do not wait, by the padded lengths of their next batches. All of them step, so that
        those at the same step stay there, and take the same batches."""
        groups: dict[tuple[int, ...], list[Slot]] = {}
        for slot in (slot for slot in pack.slots if not slot.waits):
            lengths = tuple(batch.length for batch in self._next_batches(slot, feed))
            groups.setdefault(lengths, []).append(slot)
        return list(groups.values())

    def _step(self, due: list[Slot], pack: AnyPack, feed: Feed) -> None:
        tokens = [sum(batch.tokens for batch in self._next_batches(slot, feed)) for slot in due]
        rows = [self._rows(due, feed, part) for part in range(due[0].per_step)]
        self._unheard.append((due, pack.step(due, rows)))
        for slot, count in zip(due, tokens, strict=True):
            slot.took_step(count)
            self.steps, self.tokens = self.steps + 1, self.tokens + count
        if any(slot.check_due for slot in due):
            self.listen()
            pack.read_alive()
            self._finish_ended([(slot, pack, feed) for slot in due])
            if time.monotonic() - self._saved >= self.save_every:
                self.save()

    def _evaluate_waiting(self) -> None:
        """Evaluates those that no other of their pack, with evaluations as often, is still to catch up with."""
        for pack, feed in {pack: feed for _, pack, feed in self.running}.items():
            for interval in {slot.config.trainer.eval_every for slot in pack.slots}:
                due = [slot for slot in pack.slots if slot.config.trainer.eval_every == interval]
                if all(slot.waits for slot in due):
                    self.listen()  # what the steps took is not the evaluation's
                    self._evaluate(due, pack, feed)
                    self._finish_ended([(slot, pack, feed) for slot in due])
                    self._watch.lap()

    def save(self) -> None:
        """Writes a checkpoint of every running trial, for another engine to go on from."""
        self.listen()
        start = time.monotonic()
        for slot, pack, _ in self.running:
            pack.read_alive()
            if slot.alive and slot.step > 0:
                checkpoint.save(slot, pack.state(slot))
        self._saved = time.monotonic()
        self.save_every = max(SAVE_EVERY, (self._saved - start) / SAVE_SHARE)

    def listen(self) -> None:
        """Waits for the steps handed to the device, and shares their losses and the time they took."""
        heard = [(due, losses.tolist()) for due, losses in self._unheard]
        share = self._watch.lap() / max(1, sum(len(due) for due, _ in heard))
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

    def mean_losses(self, due: list[Slot], pack: AnyPack, feed: Feed, split: str) -> list[float]:
        """Mean loss over all counted tokens of a split, by slot of a pack."""
        batches = getattr(feed, split)
        boundaries = [self.computation.boundary(slot) for slot in due]
        sums = []
        for i in range(len(batches)):
            sums.append(pack.evaluate(due, feed.rows([batches[i : i + AHEAD]] * len(due), split, boundaries)))
            mx.async_eval(sums[-1])  # the device goes on while the next batch is made ready
        total = np.sum([each.tolist() for each in sums], axis=0)
        return (total / sum(batch.tokens for batch in batches)).tolist()

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
        return order(len(feed.train), steps * config.trainer.grad_accumulation, config.seed, spec.repeat)

    def _resumed(self, config: TrainConfig, repeat: int = 0) -> Start | None:
        """What `resume_adapter_file` starts from; None: what every new trial does."""
        path, kind = config.resume_adapter_file, self.learned(config)
        if path is None:
            return None
        stored = read(path, f"resume_adapter_file={path}")
        return kind.resumed(stored, config) if config.resume_strict else kind.refitted(stored, config, repeat)

    def _next_batches(self, slot: Slot, feed: Feed) -> list[Batch]:
        return [feed.train[index] for index in slot.coming[: slot.per_step]]

    def _rows(self, due: list[Slot], feed: Feed, part: int) -> Rows:
        """Those of one of the batches of the step that the due slots take next."""
        coming = [[feed.train[index] for index in slot.coming[part : part + AHEAD]] for slot in due]
        return feed.rows(coming, "train", [self.computation.boundary(slot) for slot in due])

    def _evaluate(self, due: list[Slot], pack: AnyPack, feed: Feed) -> None:
        for slot, loss in zip(due, self.mean_losses(due, pack, feed, "valid"), strict=True):
            self._note(slot, pack, loss)

    def _note(self, slot: Slot, pack: AnyPack, loss: float) -> None:
        slot.alive = slot.alive and math.isfinite(loss)
        adapter = pack.adapter(slot) if slot.improves(loss) else None
        mx.eval(adapter)
        self.events.append(Evaluated(slot.spec.name, slot.evaluated(loss, adapter)))

    def _finish_ended(self, entries: Sequence[tuple[Slot, AnyPack, Feed]]) -> None:
        self._end([(slot, pack, *slot.verdict) for slot, pack, _ in entries if slot.verdict is not None])

    def _end(self, endings: Sequence[tuple[Slot, AnyPack, str, str | None]]) -> None:
        """Ends trials with a state and a reason; what they leave on disk is written side by side."""
        writing = [leaving(slot, self.learned(slot.config), state, reason) for slot, _, state, reason in endings]
        for slot, pack, *_ in endings:
            if slot.keeps_state:
                checkpoint.save(slot, pack.state(slot))
            self.running = [entry for entry in self.running if entry[0] is not slot]
            pack.remove(slot)
        self.events += self._writers.map(lambda write: write(), writing)
