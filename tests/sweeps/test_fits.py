"""Samplers and pruners that have no meaning for a space are refused with the reason."""

import importlib.util
import sys
from typing import Any

import pytest

from lora_core.errors import UserError
from sweeps import fits
from sweeps.space import cap_num_layers, make_job

RATE = "optimizer.learning_rate=tag(log,interval(1e-5,1e-3))"
RANK = "lora_parameters.rank=4,8"
ALONE = "search.space=[]"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["search/sampler=grid", RANK, RATE], ["Axis optimizer.learning_rate=", "optimizer.learning_rate=a,b"]),
        (["search/sampler=cmaes", RANK], ["cmaes", "range or an interval"]),
        (["search.objectives=[val_loss,adapter_mb]", RANK], ["search.objectives", "median", "search/pruner=none"]),
        (
            ["search.objectives=[val_loss,adapter_mb]", "search/pruner=none", "search/sampler=cmaes", RATE],
            ["cmaes", "one objective only"],
        ),
    ],
)
def test_refused(argv: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        make_job([ALONE, *argv])
    for word in words:
        assert word in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("enqueued", "words"),
    [
        ("[{lora_parameters.rnk:8}]", ["entry 1: lora_parameters.rnk is no axis", "Did you mean lora_parameters.rank"]),
        ("[{lora_parameters.rank:8},{lora_parameters.rank:5}]", ["entry 2: lora_parameters.rank=5", RANK]),
        ("[{optimizer.learning_rate:1}]", ["optimizer.learning_rate=1 does not lie"]),
        ("[{lora_parameters.rank:8},{lora_parameters.rank:8}]", ["entry 2 is there twice"]),
        ("[{}]", ["entry 1 is empty"]),
        ("[a]", ["search.enqueue"]),
    ],
)
def test_what_is_tried_first_must_lie_in_the_space(enqueued: str, words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        make_job([ALONE, RANK, RATE, f"search.enqueue={enqueued}"])
    for word in words:
        assert word in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 3


def test_and_in_what_the_model_has_of_it() -> None:
    job = make_job(["search.enqueue=[{num_layers:16}]"])
    assert job.config.search.enqueue == [{"num_layers": 16}]
    with pytest.raises(UserError, match=r"num_layers=16 does not lie in the axis num_layers=4,8,all"):
        cap_num_layers(job, 10)


@pytest.mark.parametrize(
    "axis",
    [RANK, "lora_parameters.rank=interval(4,8)", "lora_parameters.dropout=range(0.0,0.3,0.1)",
     "optimizer.warmup=interval(0.1,0.1)"],
)  # fmt: skip
def test_what_a_grid_can_enumerate(axis: str) -> None:
    assert make_job([ALONE, "search/sampler=grid", axis]).axes


@pytest.mark.parametrize(("sampler", "package"), [("cmaes", "cmaes"), ("gp", "torch")])
def test_a_missing_package_is_told_by_its_extra(sampler: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str, *given: Any) -> Any:
        return None if name == package else real(name, *given)

    real = importlib.util.find_spec
    monkeypatch.setattr(fits, "find_spec", without)
    monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.raises(UserError) as raised:
        make_job([ALONE, f"search/sampler={sampler}", RATE])
    assert f"the extra {sampler}: uv sync --extra {sampler}" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
