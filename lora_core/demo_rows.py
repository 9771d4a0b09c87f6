"""The demo data: short requests to a house, and the command each one means.

    "Could you dim the pantry lights to 35 percent?"  →  light.pantry set level=35

The syntax is this project's own, so a model cannot know it beforehand and has to learn it from the rows. They
are short, so that it can do so in a minute on a CPU. `python -m lora_core.demo_rows FOLDER` writes the files
that ship in `lora_core/demo`; a test compares them byte for byte.
"""

import json
import random
import sys
from pathlib import Path
from typing import NamedTuple, TypeVar

FOLDER = Path(__file__).parent / "demo"
SEED = 20_261
SIZES = {"train": 200, "valid": 40, "test": 40}
ROOMS = (
    "kitchen", "bedroom", "bathroom", "attic", "garage", "hallway", "study", "cellar",
    "nursery", "porch", "pantry", "library", "workshop", "balcony",
)  # fmt: skip


class Device(NamedTuple):
    """One kind of command: how people ask for it, what is written, and which numbers it takes."""

    command: str
    numbers: range
    requests: tuple[str, ...]


DEVICES = (
    Device(
        "light.{room} set level={n}",
        range(5, 100, 5),
        (
            "Set the {room} light to {n} percent.",
            "Could you dim the {room} lights to {n} percent?",
            "I want {n} percent light in the {room}.",
        ),
    ),
    Device(
        "heat.{room} set temp={n}",
        range(15, 26),
        (
            "Make the {room} {n} degrees.",
            "It should be {n} degrees in the {room}, please.",
            "Warm up the {room} until it is {n} degrees.",
        ),
    ),
    Device(
        "blind.{room} set open={n}",
        range(10, 100, 10),
        (
            "Open the {room} blinds {n} percent.",
            "Please leave the {room} blinds {n} percent open.",
            "Can the blinds in the {room} go to {n} percent?",
        ),
    ),
    Device(
        "fan.{room} run min={n}",
        range(5, 60, 5),
        (
            "Run the fan in the {room} for {n} minutes.",
            "We need {n} minutes of fresh air in the {room}.",
            "Air the {room} for {n} minutes.",
        ),
    ),
    Device(
        "plug.{room} off after={n}",
        range(2, 13),
        (
            "Switch the {room} socket off in {n} hours.",
            "In {n} hours, cut the power in the {room}.",
            "No power in the {room} after {n} hours, please.",
        ),
    ),
)

Item = TypeVar("Item")


def demo_rows() -> dict[str, list[dict[str, str]]]:
    """The rows of each split, always the same. No prompt and no completion occurs twice."""
    rng = random.Random(SEED)
    per_device = sum(SIZES.values()) // len(DEVICES)
    rows = [row for device in DEVICES for row in _shuffled(_rows_of(device, rng), rng)[:per_device]]
    rows = _shuffled(rows, rng)
    splits = {}
    for name, size in SIZES.items():
        splits[name], rows = rows[:size], rows[size:]
    return splits


def _rows_of(device: Device, rng: random.Random) -> list[dict[str, str]]:
    """Every command of the device once, each asked for in one of the device's ways."""
    rows = []
    for room in ROOMS:
        for n in device.numbers:
            request = device.requests[int(rng.random() * len(device.requests))]
            completion = device.command.format(room=room, n=n)
            rows.append({"prompt": request.format(room=room, n=n), "completion": completion})
    return rows


def _shuffled(items: list[Item], rng: random.Random) -> list[Item]:
    """A random order from `rng.random()` alone, the one method whose sequence no Python version may
    change."""
    keys = [rng.random() for _ in items]
    return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]


def write(folder: Path) -> None:
    """Writes train.jsonl, valid.jsonl and test.jsonl into an existing folder."""
    for name, rows in demo_rows().items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_bytes(lines.encode())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
