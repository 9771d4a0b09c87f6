"""Who is asked for sample answers, and when again. What is answered is tested with the engine."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from lora_core.records import load_trial, save_trial
from lora_core.samples import Answer
from reports.samples import Row, load
from sweeps.protocol import Sampled
from sweeps.sampling import sample
from tests.reports.helpers import write_study


class Asked:
    """In place of a worker: answers with the name of the adapter's trial, and keeps count."""

    def __init__(self) -> None:
        self.adapters: list[str | None] = []

    def sample(self, adapter: str | None, config: dict[str, Any], rows: int) -> Sampled:
        self.adapters.append(adapter)
        return Sampled([Answer("1+1=", "2.", Path(adapter).parent.name if adapter else "?")] * min(rows, 3))


def put_adapter(folder: Path, name: str, content: bytes = b"weights") -> None:
    record, adapter = load_trial(folder / name), folder / name / "adapters"
    adapter.mkdir(exist_ok=True)
    (adapter / "adapters.safetensors").write_bytes(content)
    record.adapter, record.adapter_sha256 = str(adapter), hashlib.sha256(content).hexdigest()
    save_trial(folder / name, record)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = write_study(tmp_path)
    for name in ("default", "trial-0003"):
        put_adapter(folder, name)
    return folder


def test_base_default_and_winner_are_asked_once(study: Path) -> None:
    worker = Asked()
    for _ in range(2):
        assert sample(worker, study, 1) == []
        assert load(study).rows == [Row("1+1=", "2.", {n: n for n in ("default", "trial-0003")} | {"base": "?"})]
    assert worker.adapters == [None, f"{study}/default/adapters", f"{study}/trial-0003/adapters"]


def test_as_many_rows_as_are_wanted_now(study: Path) -> None:
    worker = Asked()
    for wanted, there in ((2, 2), (4, 3), (4, 3)):
        sample(worker, study, wanted)
        assert len(load(study).rows) == there
    assert len(worker.adapters) == 2 * 3


def test_another_winner_is_asked(study: Path) -> None:
    worker, record = Asked(), load_trial(study / "trial-0008")
    sample(worker, study, 1)
    record.metrics["best_val_loss"] = 1.0
    save_trial(study / "trial-0008", record)
    put_adapter(study, "trial-0008")
    sample(worker, study, 1)
    assert len(worker.adapters) == 6 and list(load(study).adapters) == ["base", "default", "trial-0008"]


def test_an_adapter_that_has_changed_is_not_asked(study: Path) -> None:
    (study / "default" / "adapters" / "adapters.safetensors").write_bytes(b"others")
    worker = Asked()
    (problem,) = sample(worker, study, 1)
    assert problem.startswith("default has not answered the samples: ") and "has changed" in problem
    assert list(load(study).adapters) == ["base", "trial-0003"]


def test_without_a_winner_nobody_is_asked(tmp_path: Path) -> None:
    folder = write_study(tmp_path, trials=[])
    assert sample(Asked(), folder, 1) == []
    assert not (folder / "samples.json").exists()
