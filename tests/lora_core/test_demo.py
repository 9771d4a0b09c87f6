"""The demo data is what its generator says, and no split knows another's rows."""

import json
from itertools import combinations
from pathlib import Path

import pytest

from lora_core.config import DataConfig
from lora_core.data_sources import read_data
from lora_core.demo_rows import DEVICES, FOLDER, demo_rows, write

ROWS = demo_rows()


def test_shipped_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("train", "valid", "test"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (FOLDER / f"{name}.jsonl").read_bytes()


def test_sizes_and_templates() -> None:
    assert {name: len(rows) for name, rows in ROWS.items()} == {"train": 200, "valid": 40, "test": 40}
    assert len({request for device in DEVICES for request in device.requests}) >= 5
    for rows in ROWS.values():
        assert len({row["completion"].split(".")[0] for row in rows}) == len(DEVICES)


@pytest.mark.parametrize("key", ["prompt", "completion"])
def test_nothing_occurs_in_two_splits_or_twice(key: str) -> None:
    found = [[row[key] for row in rows] for rows in ROWS.values()]
    assert all(len(texts) == len(set(texts)) for texts in found)
    assert not any(set(a) & set(b) for a, b in combinations(found, 2))


def test_rows_are_short_and_say_what_the_command_needs() -> None:
    for row in (row for rows in ROWS.values() for row in rows):
        room, number = row["completion"].split(".")[1].split()[0], row["completion"].split("=")[1]
        assert room in row["prompt"] and number in row["prompt"]
        assert len(row["prompt"].split()) <= 12 and len(row["completion"]) <= 32


def test_it_is_the_builtin_demo() -> None:
    splits, notes = read_data(DataConfig(path="builtin:demo"), seed=0)
    assert {name: [example.values for example in rows] for name, rows in splits.items()} == ROWS
    assert not notes
    assert json.loads((FOLDER / "valid.jsonl").read_text().splitlines()[0]) == ROWS["valid"][0]
