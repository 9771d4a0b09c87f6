"""What is in training, and how long the rest will take."""

import pytest

from lora_core.config import TrainConfig
from lora_core.records import TrialRecord
from lora_core.trial import TrialSpec
from sweeps.protocol import Progress
from sweeps.work import Work


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds."""
    seconds = [100.0]
    monkeypatch.setattr("sweeps.work.time.monotonic", lambda: seconds[0])
    return seconds


def spec(name: str, **trainer: float | None) -> TrialSpec:
    config = TrainConfig().to_dict()
    config["trainer"].update(trainer)
    return TrialSpec(name, name.partition("-")[0], config, "")


def ended(name: str) -> TrialRecord:
    return TrialRecord(name, name.partition("-")[0], "complete")


def test_time_left(now: list[float]) -> None:
    work = Work(10)
    work.begin(10)
    assert work.seconds_left() is None
    work.started(spec("trial-0000", iters=100))
    now[0] += 30
    work.took(Progress(50, 1000, 0.5))
    assert work.seconds_left() == pytest.approx(570)  # half a trial in 30 seconds, 9.5 to go
    work.ended(ended("trial-0000"))
    assert work.seconds_left() == pytest.approx(270)


def test_time_left_with_trials_that_end_elsewhere(now: list[float]) -> None:
    work = Work(10)
    work.begin(10)
    work.started(spec("trial-0000", iters=100))
    now[0] += 30
    work.took(Progress(50, 1000, 0.5))
    work.ended(ended("trial-0001"))
    assert work.seconds_left() == pytest.approx(30 / 1.5 * 8.5)


def test_the_default_settings_are_trained_too(now: list[float]) -> None:
    work = Work(1)
    work.begin(1)
    work.started(spec("base", iters=100))
    work.started(spec("default", iters=100))
    now[0] += 30
    work.took(Progress(50, 1000, 0.5))
    assert work.seconds_left() == pytest.approx(90)


def test_steps_are_those_of_the_last_evaluation() -> None:
    work = Work(2)
    for number in range(2):
        work.started(spec(f"trial-{number:04d}", iters=100))
    work.took(Progress(60, 1000, 0.5))
    assert [trial.step for trial in work.running.values()] == [30, 30]
    work.evaluated("trial-0000", {"step": 40, "val_loss": 2.0, "train_loss": 3.0})
    first, second = work.running.values()
    assert (first.step, first.train_loss, first.losses) == (40, 3.0, [2.0])
    assert (second.step, second.train_loss, second.losses) == (30, None, [])


def test_steps_of_epochs() -> None:
    work = Work(1)
    work.batches = 50
    work.started(spec("trial-0000", iters=None, epochs=1.5))
    assert work.running["trial-0000"].steps == 75
    work.evaluated("trial-0000", {"step": 30, "val_loss": 2.0})
    assert work.under_way() == pytest.approx(0.4)
