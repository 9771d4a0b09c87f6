"""What a trial was trained with: its method, rank, α/r and learning rate."""

from lora_core.config import TrainConfig
from lora_core.records import TrialRecord
from reports.study import finite


def method_of(trial: TrialRecord) -> str:
    """`lora`, `rslora`, `dora` or `full`."""
    config = TrainConfig.from_dict(trial.config)
    is_rslora = config.train_type == "lora" and config.lora_parameters.scaling == "alpha_over_sqrt_r"
    return "rslora" if is_rslora else config.train_type


def has_rank(trial: TrialRecord) -> bool:
    """What trains the model's own weights has none."""
    return trial.config.get("train_type") != "full"


def rank_of(trial: TrialRecord) -> float:
    return float(TrainConfig.from_dict(trial.config).lora_parameters.rank)


def ratio_of(trial: TrialRecord) -> float:
    """α/r as measured, or as the configuration says."""
    measured = trial.metrics.get("scale_ratio")
    return measured if finite(measured) and measured else TrainConfig.from_dict(trial.config).lora_parameters.ratio


def rate_of(trial: TrialRecord) -> float:
    return float(TrainConfig.from_dict(trial.config).optimizer.learning_rate)
