"""The training process: what it checks before it says that it is ready, and when it speaks."""

import errno
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_core import saved
from lora_core.config import TrainConfig
from lora_core.errors import UserError
from lora_core.trial import Ended, Evaluated
from sweeps.client import Worker
from sweeps.protocol import Channel, Fuse, Go, Report, Setup
from sweeps.worker import Ticker, _fuse, _train
from tests.sweeps.helpers import write_data


def tiny(folder: Path) -> dict:
    config = TrainConfig()
    config.model.path, config.data.path = "builtin:tiny", str(folder)
    return config.to_dict()


def test_every_variant_is_checked(tmp_path: Path) -> None:
    right = tiny(write_data(tmp_path))
    wrong = {**right, "lora_parameters": {**right["lora_parameters"], "keys": ["nothing"]}}
    told = r"^Axis a=2: lora_parameters.keys: 'nothing'"
    with (
        Worker(Setup(right, 1, {"Axis a=1": right, "Axis a=2": wrong})) as worker,
        pytest.raises(UserError, match=told),
    ):
        worker.ready()


def test_what_it_tells_of_model_and_data(tmp_path: Path) -> None:
    with Worker(Setup(tiny(write_data(tmp_path)), 1)) as worker:
        ready = worker.ready()
    assert (ready.model.depth, ready.slots) == (4, 1)
    assert ready.data.rows == {"train": 12, "valid": 4, "test": 0}
    assert ready.data.batches == 3
    assert worker.process.returncode == 0


def test_what_is_left_where_a_merged_model_finds_no_room_in_fewer_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saved, "requantise", full)
    for merging, there in ((lambda *_: 0.0, "/best"), (full, None)):
        monkeypatch.setattr(saved, "fuse", merging)
        fused = _fuse(None, Fuse("/adapters", TrainConfig().to_dict(), "/best", "4bit"))
        assert fused.folder == there and "no space left" in str(fused.reason)


class Engine:
    """Evaluates at every step, and ends its trial at the third."""

    def __init__(self) -> None:
        self.steps = self.tokens = 0
        self.free = 1
        self.events: list[Evaluated | Ended] = []
        self.running: list[str] = []
        self.stopped: list[str] = []

    def start(self, spec: SimpleNamespace) -> None:
        self.running.append("t")
        self.events.append(Evaluated("t", {"step": 0, "val_loss": 3.0}))

    def stop(self, name: str) -> None:
        self.stopped.append(name)

    def advance(self) -> None:
        self.steps, self.tokens = self.steps + 1, self.tokens + 10
        self.events.append(Evaluated("t", {"step": self.steps, "val_loss": 2.0}))


def test_it_waits_at_every_evaluation_after_the_first() -> None:
    engine, text = Engine(), io.StringIO()
    _train(engine, Go(start=[SimpleNamespace()], stop=["other"]), Channel(io.StringIO(), text))  # type: ignore[list-item]
    *_, last = text.getvalue().splitlines()
    report = Channel(io.StringIO(last + "\n"), text).receive()
    assert isinstance(report, Report)
    assert [event.row["step"] for event in report.evaluated] == [0, 1]
    assert (engine.stopped, engine.events) == (["other"], [])


def test_ticks_tell_what_was_done_since_the_last() -> None:
    engine, text = Engine(), io.StringIO()
    ticker, channel = Ticker(engine), Channel(io.StringIO(), text)
    engine.advance()
    ticker.tick(channel)  # too soon
    assert text.getvalue() == ""
    ticker.tick(channel, last=True)
    assert '"steps": 1, "tokens": 10' in text.getvalue()
