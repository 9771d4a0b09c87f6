"""Messages survive the way through text unchanged."""

import io
import math
from pathlib import Path

import pytest

from lora_core.config import TrainConfig
from lora_core.measured import Measured, Probe
from lora_core.records import DataInfo, ModelInfo
from lora_core.samples import Answer
from lora_core.trial import Ended, Evaluated, TrialSpec
from sweeps.protocol import (
    Channel,
    Fault,
    Fuse,
    Fused,
    Go,
    Measure,
    Message,
    Progress,
    Ready,
    Report,
    Sample,
    Sampled,
    Score,
    Scored,
    Setup,
)

CONFIG = TrainConfig().to_dict()
MODEL = ModelInfo("builtin:tiny", "/models/tiny", "llama", 4, ["self_attn.q_proj"], 164608, "float32", "f00d")
DATA = DataInfo("builtin:demo", "beef", {"train": 200}, {"train": 2000}, [64, 96], 50)
SPEC = TrialSpec("trial-0007", "trial", CONFIG, "/out/ä b", 7, params={"lora_parameters.keys": ["a", "b"]})


@pytest.mark.parametrize(
    "message",
    [
        Setup(CONFIG, 2, {"Axis num_layers=all": CONFIG}),
        Ready(MODEL, DATA, 2, False, {"device": "CPU: a\nb"}, ["a note"]),
        Measure([CONFIG, CONFIG]),
        Probe(2, True, [Measured(1, 100.5, 1.25), Measured(2, 150.0, 1.5)], 1.75, 20.5, 3.0, (64, 96), ["b"]),
        Go([SPEC, SPEC], ["trial-0003"]),
        Go(),
        Report([Evaluated("base", {"step": 0, "val_loss": 0.1 + 0.2})], [Ended("base", {"state": "complete"})], 1),
        Progress(3, 100, 0.25),
        Fuse("/out/adapters", CONFIG, "/out/best"),
        Fused(None, "no space left"),
        Fused("/merged", error=0.25),
        Score("/out/adapters", CONFIG),
        Score(None, CONFIG),
        Scored(0.1 + 0.2),
        Scored(None, "no such file"),
        Sample(None, CONFIG, 3),
        Sampled([Answer("1+1=", "2", "two\nlines")]),
        Sampled([], "no such file"),
        Fault("user", "two\nlines"),
    ],
)
def test_round_trip(message: Message) -> None:
    text = io.StringIO()
    Channel(io.StringIO(), text).send(message)
    assert text.getvalue().count("\n") == 1
    assert Channel(io.StringIO(text.getvalue()), text).receive() == message


def test_a_diverged_loss() -> None:
    text = io.StringIO()
    Channel(io.StringIO(), text).send(Report([Evaluated("t", {"step": 8, "val_loss": math.nan})], [], 0))
    report = Channel(io.StringIO(text.getvalue()), text).receive()
    assert isinstance(report, Report) and math.isnan(report.evaluated[0].row["val_loss"])


@pytest.mark.parametrize("text", ["", '{"type": "Go", "start": [], "st'])
def test_the_other_side_is_gone(text: str) -> None:
    assert Channel(io.StringIO(text), io.StringIO()).receive() is None


def test_settings_keep_their_types() -> None:
    text = io.StringIO()
    Channel(io.StringIO(), text).send(Go([SPEC]))
    go = Channel(io.StringIO(text.getvalue()), text).receive()
    assert isinstance(go, Go)
    assert TrainConfig.from_dict(go.start[0].config) == TrainConfig()
    assert Path(go.start[0].folder) == Path("/out/ä b")


def test_what_a_merge_has_cost_is_said() -> None:
    assert "changed ΔW by 0 % of its size" in Fused("/merged").note
    assert "changed ΔW by 2e-05 % of its size" in Fused("/merged", error=2e-7).note
    few = Fused("/merged", error=0.25, quantization="4bit", changed=0.5, loss=2.0).note
    assert "changed ΔW by 25 % of its size" in few and "its weights by 50 % of their size" in few
    assert "changed ΔW by 25 % of its size" in Fused("/merged", error=0.25).note
    assert Fused(None, "no space").note == "Merging failed: no space"
    assert "/merged is whole, but not in 4bit: no space" in Fused("/merged", "no space", quantization="4bit").note
    assert "/merged was put in 4bit" in Fused("/merged", quantization="4bit").note
