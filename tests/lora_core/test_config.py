"""Settings that no model or data could make right are refused, each by name."""

import math
from typing import Any

import pytest

from lora_core.config import DataConfig, OptimizerConfig, TrainConfig, TrainerConfig, check
from lora_core.errors import UserError


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (TrainConfig(seed=-1), "seed is -1: expected 0 to 4294967295"),
        (TrainConfig(seed=2**32), "seed is 4294967296"),
        (TrainConfig(trainer=TrainerConfig(iters=None, epochs=math.inf)), "trainer.epochs is inf"),
        (TrainConfig(trainer=TrainerConfig(iters=None, epochs=math.nan)), "trainer.epochs is nan"),
        (TrainConfig(trainer=TrainerConfig(iters=None)), "found neither"),
        (TrainConfig(trainer=TrainerConfig(iters=1, epochs=1)), "found both"),
        # What is expected must not be what was found.
        (TrainConfig(data=DataConfig(valid_fraction=0.0)), "is 0.0: expected above 0 and below 1"),
        (TrainConfig(data=DataConfig(valid_fraction=1.0)), "is 1.0: expected above 0 and below 1"),
        (TrainConfig(optimizer=OptimizerConfig(learning_rate=math.inf)), "is inf: expected a finite number above 0"),
        (TrainConfig(optimizer=OptimizerConfig(weight_decay=math.inf)), "is inf: expected a finite number from 0"),
        (TrainConfig(optimizer=OptimizerConfig(warmup=1.0)), "is 1.0: expected a share of the steps, 0 to below 1"),
        (TrainConfig(trainer=TrainerConfig(grad_clip=math.inf)), "is inf: expected a finite number above 0"),
    ],
)
def test_bad_settings_are_named(config: TrainConfig, words: str) -> None:
    with pytest.raises(UserError) as raised:
        check(config)
    assert words in str(raised.value)


@pytest.mark.parametrize(("key", "value"), [("seed", 0), ("seed", 2**32 - 1), ("num_layers", "all")])
def test_the_ends_of_a_range_pass(key: str, value: Any) -> None:
    config = TrainConfig()
    setattr(config, key, value)
    check(config)
