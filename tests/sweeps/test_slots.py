"""The number of trials at a time: measured on settings of the space, chosen, stored, and used again."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_core.measured import Measured, Probe
from lora_core.records import StudyRecord
from sweeps.compose import Composer
from sweeps.config import SweepConfig, resolve
from sweeps.preflight import most_slots, slots_for
from sweeps.protocol import Channel, Message, Ready
from sweeps.slots import draw, slots_line
from sweeps.space import cap_num_layers, make_job
from tests.sweeps.helpers import RATE, Place
from tests.sweeps.test_memory import search

SPACE = [
    "search.space=[]", RATE, "lora_parameters.rank=range(2,9,2)", "lora_parameters.dropout=0.0,0.1",
    "lora_parameters.keys=[self_attn.q_proj],[self_attn.q_proj,self_attn.v_proj]", "trainer.patience=null,3",
    "num_layers=1,2,4,8,all", "model=tiny",
]  # fmt: skip


def test_samples_lie_in_the_space() -> None:
    job = make_job(SPACE)
    samples = draw(job, 32)
    assert len(samples) == 32
    for sample in samples:
        assert 1e-3 <= sample["optimizer"]["learning_rate"] <= 1e-1
        assert sample["lora_parameters"]["rank"] in (2, 4, 6, 8)
        assert sample["lora_parameters"]["keys"][0] == "self_attn.q_proj"
        assert sample["model"]["path"] == "builtin:tiny"
        assert (sample["adapter_path"], sample["fuse"]) == (None, False)
    # All of it is drawn from, and values keep their types.
    assert {sample["num_layers"] for sample in samples} == {1, 2, 4, 8, "all"}
    assert {sample["trainer"]["patience"] for sample in samples} == {None, 3}
    assert {len(sample["lora_parameters"]["keys"]) for sample in samples} == {1, 2}


def test_samples_are_those_of_the_model() -> None:
    job, _ = cap_num_layers(make_job(["model=tiny", "data=demo"]), 4)
    assert {sample["num_layers"] for sample in draw(job)} == {"all"}
    quick, _ = cap_num_layers(make_job(["model=tiny", "search=quick"]), 4)
    assert {sample["num_layers"] for sample in draw(quick)} == {4}


def test_samples_by_seed() -> None:
    first, again, other = (draw(make_job([*SPACE, f"seed={seed}"]), 8) for seed in (0, 0, 1))
    assert first == again
    rates = [[sample["optimizer"]["learning_rate"] for sample in samples] for samples in (first, other)]
    assert not set(rates[0]) & set(rates[1])


def config(*overrides: str) -> SweepConfig:
    return resolve(Composer(["model=tiny", *overrides]).compose())


def earlier(slots: int, *overrides: str) -> StudyRecord:
    given = config(*overrides)
    sampler, pruner = given.search.sampler["name"], given.search.pruner["name"]
    return StudyRecord(
        "s", n_trials=given.n_trials, sampler=sampler, pruner=pruner, config=given.to_dict(),
        environment={"slots": slots},
    )  # fmt: skip


def test_the_most_slots_of_a_new_study() -> None:
    assert most_slots(config("n_trials=32"), None) == 8
    assert most_slots(config("n_trials=3"), None) == 1
    assert most_slots(config("n_trials=32", "search/sampler=random"), None) == 8
    assert most_slots(config("n_trials=32", "search/sampler=random", "search/pruner=none"), None) == 32


@pytest.mark.parametrize(
    ("slots", "before", "expected"),
    [
        ("auto", None, (8, True)),
        (4, None, (4, False)),
        (16, None, (8, False)),
        ("auto", earlier(3, "n_trials=32"), (3, False)),
        # Memory allowed two of eight.
        (8, earlier(2, "n_trials=32", "trainer.slots=8"), (2, False)),
        # Another number is a new wish.
        (4, earlier(2, "n_trials=32", "trainer.slots=8"), (4, False)),
        # Two were all that eight trials allowed.
        (8, earlier(2, "n_trials=8", "trainer.slots=8"), (8, False)),
        # It was interrupted before it was known.
        ("auto", StudyRecord("s"), (8, True)),
    ],
)
def test_slots_for(slots: int | str, before: StudyRecord | None, expected: tuple[int, bool]) -> None:
    assert slots_for(config("n_trials=32", f"trainer.slots={slots}"), before) == expected


def test_the_line() -> None:
    measured = [Measured(1, 1234.4, 1.0), Measured(2, 2468.8, 1.5)]
    assert slots_line(Probe(2, True, measured, 1.5, 1.0, 0.0, (1, 2))) == "Slots 2 (1: 1,234 tokens/s, 2: 2,469)"
    assert slots_line(Probe(1, True, measured[:1], 1.5, 1.0, 0.0, (1, 2))) == "Slots 1 (1: 1,234 tokens/s)"


def test_a_search_chooses_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Place(tmp_path)
    assert search(place, "trainer.slots=auto") == 0
    record = place.record()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Slots")]
    assert re.fullmatch(r"Slots [124] \(1: [\d,]+ tokens/s, 2: [\d,]+(, 4: [\d,]+)?\)", line)
    assert line in record.notes
    assert line.startswith(f"Slots {record.environment['slots']} ")
    assert search(place, "trainer.slots=auto", "n_trials=5") == 0
    printed = capsys.readouterr().out
    assert "Measuring" not in printed
    assert place.record().notes.count(line) == 1
    assert place.record().environment["slots"] == record.environment["slots"]


@pytest.mark.slow
def test_what_was_found_of_depths_holds_for_the_study(
    tmp_path: Path, short_of_memory: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for another worker after the death of one, and for a resume; so it takes three of them."""
    place, packs, plain = Place(tmp_path), [], Channel.receive

    def receive(self: Channel) -> Message | None:
        message = plain(self)
        if isinstance(message, Ready):
            packs.append(message.joins)
        return replace(message, joins=False) if isinstance(message, Probe) else message

    monkeypatch.setattr(Channel, "receive", receive)
    workers = short_of_memory("error", 1)
    for _ in range(2):
        assert search(place, "num_layers=1,2", "trainer.slots=2", "n_trials=2") == 0
    assert len(workers) == 3 and packs == [True, False, False]
    assert place.record().environment["depths_together"] is False
    assert not any("depths_together" in note for note in place.record().notes)


def test_a_given_number_is_checked_and_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(Place(tmp_path), "trainer.slots=2", "n_trials=2") == 0
    printed = capsys.readouterr().out
    assert re.search(r"^Slots 2 \(1: [\d,]+ tokens/s, 2: [\d,]+\)$", printed, re.MULTILINE)
    assert "Checked: 2 trials packed" in printed


def test_one_slot_needs_no_measuring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(Place(tmp_path), "trainer.slots=1", "n_trials=2") == 0
    assert "Measuring" not in capsys.readouterr().out


@pytest.mark.slow
def test_measuring_runs_out_of_memory(
    tmp_path: Path, short_of_memory: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    place, workers = Place(tmp_path), short_of_memory(9, 1, 10**9, 3)
    assert search(place, "trainer.slots=auto") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "Slots" in line]
    assert [line.rpartition("Slots ")[2] for line in said[:2]] == ["at most 4 → 2.", "at most 2 → 1."]
    assert said[2].startswith("Slots 1 (1: ") and len(said) == 3
    assert len(workers) == 3
    assert place.record().environment["slots"] == 1
