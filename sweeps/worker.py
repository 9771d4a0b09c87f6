"""The process that holds the base model: `python -m sweeps.worker`, spoken to over stdin and stdout. It trains, or
answers prompts."""

import faulthandler
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lora_core import backend, disk
from lora_core.config import TrainConfig
from lora_core.errors import UserError, first_line
from lora_core.measured import Probe
from lora_core.records import DataInfo
from lora_core.trial import Ended, Evaluated
from sweeps.protocol import (
    Answered,
    Ask,
    Channel,
    Fault,
    Fuse,
    Fused,
    Go,
    Measure,
    Progress,
    Ready,
    Report,
    Sample,
    Sampled,
    Score,
    Scored,
    Setup,
)
from sweeps.requests import STOPPED

PROGRESS_SECONDS = 0.5


def main() -> None:
    """Serves one parent until it closes the pipe. Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()  # a native crash leaves in the log where it was
    channel = _channel()
    try:
        _serve(channel)
    except BrokenPipeError:
        pass  # the parent is gone
    except UserError as error:
        channel.send(Fault("user", str(error)))
    except Exception as error:
        if disk.is_full(error):
            channel.send(Fault("disk", disk.told(error)))
        else:
            channel.send(Fault(_kind(error), traceback.format_exc()))


def _kind(error: Exception) -> str:
    if backend.is_out_of_memory(error):
        return "memory"
    return "device" if backend.is_device_failure(error) else "bug"


def _channel() -> Channel:
    """Our messages keep stdout to themselves: whatever libraries print goes to stderr."""
    outgoing = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return Channel(sys.stdin, outgoing)


def _serve(channel: Channel) -> None:
    setup = channel.receive()
    if isinstance(setup, Ask):
        return _answer(setup, channel)
    assert isinstance(setup, Setup)
    engine, ready = _set_up(setup)
    channel.send(ready)
    with suppress(BrokenPipeError):  # the parent may be gone
        _converse(engine, channel)
    engine.save()  # for the next worker to go on from


def _answer(ask: Ask, channel: Channel) -> None:
    backend.prepare()  # before the first import of mlx
    from lora_core.adapter_folder import check_base
    from lora_core.answers import answers
    from lora_core.models import load

    backend.configure(TrainConfig().trainer.memory_fraction)
    known = ask.model
    path = known["folder"] if Path(known["folder"]).is_dir() else known["path"]
    config = {"model_path": path, "model_fingerprint": known["fingerprint"]}

    def answered(adapter: str | None) -> Answered:
        base = load(path, ask.quantization, ask.group_size)  # anew each time: an adapter stays in it
        check_base(config, base.info.fingerprint, "The study")
        return Answered(answers(base, adapter, ask.prompts, ask.max_tokens))

    for adapter in ask.adapters:
        channel.send(answered(adapter))


def _converse(engine: Any, channel: Channel) -> None:
    message = channel.receive()
    while message is not None:
        if isinstance(message, Fuse):
            channel.send(_fuse(engine, message))
        elif isinstance(message, Score):
            channel.send(_score(engine, message))
        elif isinstance(message, Sample):
            channel.send(_sample(engine, message))
        elif isinstance(message, Measure):
            channel.send(_measure(engine, message))
        else:
            assert isinstance(message, Go)
            _train(engine, message, channel)
        message = channel.receive()


def _set_up(setup: Setup) -> tuple[Any, Ready]:
    notes = backend.prepare()  # before the first import of mlx
    from lora_core.data import load_data
    from lora_core.engine import Engine
    from lora_core.models import load

    config = TrainConfig.from_dict(setup.config)
    notes += backend.configure(config.trainer.memory_fraction)
    base = load(config.model.path, config.quantization, config.quantization_group_size)
    data = load_data(config.data, base.tokenizer, config.trainer.max_seq_length, config.seed)
    engine = Engine(base, data, setup.slots)
    engine.joins = engine.joins and setup.joins
    _check(engine, config, setup.variants)
    notes += [*base.notes, *data.notes, *engine.notes]
    info = _data_info(engine, config)
    return engine, Ready(base.info, info, engine.slots, engine.joins, _environment(), notes)


def _check(engine: Any, config: TrainConfig, variants: dict[str, dict[str, Any]]) -> None:
    """Whatever the model or the data would refuse later on is said now, before anything is written."""
    engine.check(config)
    for where, values in variants.items():
        try:
            engine.check(TrainConfig.from_dict(values))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def _data_info(engine: Any, config: TrainConfig) -> DataInfo:
    data, feed = engine.data, engine.feed(config)
    splits = {"train": data.train, "valid": data.valid, "test": data.test or []}
    return DataInfo(
        path=data.path,
        fingerprint=data.fingerprint,
        rows={name: len(rows) for name, rows in splits.items()},
        tokens={name: int(sum(row.counts.sum() for row in rows)) for name, rows in splits.items()},
        lengths=sorted({batch.length for batch in feed.train}),
        batches=len(feed.train),
    )


def _environment() -> dict[str, Any]:
    return {"device": backend.device_name(), "mlx": version("mlx"), "mlx-lm": version("mlx-lm")}


def _measure(engine: Any, message: Measure) -> Probe:
    from lora_core.probe import probe

    samples = [TrainConfig.from_dict(values) for values in message.samples]
    found = probe(engine, samples, engine.slots, message.choose)
    engine.slots = found.slots
    return found


def _fuse(engine: Any, message: Fuse) -> Fused:
    from lora_core import saved

    config, folder, bits = TrainConfig.from_dict(message.config), Path(message.folder), message.quantization
    fused = Fused(None, quantization=bits)
    try:
        fused.error = saved.fuse(engine, Path(message.adapter), config, folder)
        fused.folder = message.folder
        if bits is not None:
            fused.changed, fused.loss = saved.requantise(engine, folder, bits, config)
    except Exception as error:
        if disk.is_full(error):
            fused.reason = disk.told(error)
        elif isinstance(error, UserError | ValueError | OSError):
            fused.reason = str(error)
        else:
            raise
    return fused


def _score(engine: Any, message: Score) -> Scored:
    from lora_core import saved

    adapter = None if message.adapter is None else Path(message.adapter)
    try:
        return Scored(saved.score(engine, TrainConfig.from_dict(message.config), adapter))
    except (UserError, OSError) as error:
        return Scored(None, first_line(error))


def _sample(engine: Any, message: Sample) -> Sampled:
    from lora_core import saved

    adapter = None if message.adapter is None else Path(message.adapter)
    try:
        return Sampled(saved.answers(engine, TrainConfig.from_dict(message.config), adapter, message.rows))
    except (UserError, OSError) as error:
        return Sampled([], first_line(error))


def _train(engine: Any, go: Go, channel: Channel) -> None:
    """Does as told, then trains until there is something that the parent must answer."""
    for name in go.stop:
        engine.stop(name)
    for name in go.stop_by_hand:
        engine.stop(name, STOPPED)
    for spec in go.start:
        engine.start(spec)
    ticker = Ticker(engine)
    while engine.running and not _wants_answer(engine):
        engine.advance()
        ticker.tick(channel)
    ticker.tick(channel, last=True)
    events, engine.events = engine.events, []
    evaluated = [event for event in events if isinstance(event, Evaluated)]
    ended = [event for event in events if isinstance(event, Ended)]
    channel.send(Report(evaluated, ended, engine.free))


def _wants_answer(engine: Any) -> bool:
    """A trial's evaluation before its first step decides nothing, so it does not stop the others."""
    return any(isinstance(event, Ended) or event.row["step"] > 0 for event in engine.events)


@dataclass
class Ticker:
    """Sends what was done since the last tick, at most every half second."""

    engine: Any
    steps: int = field(init=False)
    tokens: int = field(init=False)
    start: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.steps, self.tokens = self.engine.steps, self.engine.tokens

    def tick(self, channel: Channel, last: bool = False) -> None:
        seconds = time.perf_counter() - self.start
        if seconds < PROGRESS_SECONDS and not last:
            return
        channel.send(Progress(self.engine.steps - self.steps, self.engine.tokens - self.tokens, seconds))
        self.__post_init__()
        self.start = time.perf_counter()


if __name__ == "__main__":
    main()
