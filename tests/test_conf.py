"""Every YAML file in conf/: it composes, it is commented, and its defaults are those of the code."""

from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lora_core.config import TrainConfig
from sweeps.compose import CONF, Composer
from sweeps.config import KEYS, PRUNERS, SAMPLERS, SweepConfig, resolve
from sweeps.space import make_job

FOLDER = Path(str(files(CONF)))
OPTIONS = [path.relative_to(FOLDER) for path in sorted(FOLDER.rglob("*.yaml")) if path.parent != FOLDER]
NEEDS_A_PATH = ("data/local.yaml", "experiment/rank_study.yaml")


@pytest.fixture(autouse=True)
def no_store_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_composes_and_resolves(option: Path) -> None:
    path = ["data.path=rows.jsonl"] if str(option) in NEEDS_A_PATH else []
    choice = f"{option.parent.as_posix()}={option.stem}"
    assert isinstance(resolve(Composer([choice, *path]).compose()), SweepConfig)


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_key_has_a_comment_above(option: Path) -> None:
    lines = (FOLDER / option).read_text().splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        is_key = line.lstrip()[:1].isalpha() and ": " in line
        if is_key and not above.lstrip().startswith("#"):
            # Keys that share a comment follow each other, such as iters and eval_every of an experiment.
            assert above.lstrip()[:1].isalpha() or above.strip() == "defaults:", f"{option}: {line}"


def test_defaults_equal_those_of_lora_core() -> None:
    composed = resolve(Composer(["data.path=builtin:demo"]).compose())
    assert TrainConfig.from_dict(composed.to_dict()) == TrainConfig()


def test_defaults_equal_those_of_sweeps() -> None:
    composed = resolve(Composer(["data.path=builtin:demo"]).compose())
    default = SweepConfig()
    default.tracking.experiment = "smollm2/demo"
    # Which space, sampler and pruner is the business of the groups alone.
    composed.search.space, composed.search.name = [], "search"
    composed.search.sampler, composed.search.pruner = {"name": "tpe"}, {"name": "median"}
    assert asdict(composed) == asdict(default)


def test_yaml_and_dataclasses_have_the_same_keys() -> None:
    composed = Composer([]).compose()
    for key in KEYS:
        assert OmegaConf.select(composed, key, default="missing") != "missing", key


@pytest.mark.parametrize("part, known", [("sampler", SAMPLERS), ("pruner", PRUNERS)])
def test_samplers_and_pruners_are_those_of_the_registry(part: str, known: dict[str, dict[str, int]]) -> None:
    files = {path.stem: OmegaConf.load(path) for path in (FOLDER / "search" / part).glob("*.yaml")}
    assert files.keys() == known.keys()
    for name, options in files.items():
        assert set(map(str, options)) == {"name", *known[name]}


@pytest.mark.parametrize("name", ["lora", "rank_scale", "quick", "methods", "methods_full"])
def test_packaged_spaces_are_valid(name: str) -> None:
    assert make_job([f"search={name}"]).config.search.name == name


def test_the_demo_keeps_its_budget_unless_told_otherwise() -> None:
    demo = resolve(Composer([]).compose())
    assert (demo.n_trials, demo.trainer.iters, demo.trainer.eval_every) == (8, 16, 8)
    assert demo.trainer.max_seq_length == 128
    assert demo.search.confirm.k == 0
    assert resolve(Composer(["search.confirm.k=2"]).compose()).search.confirm.k == 2
    assert resolve(Composer(["n_trials=3"]).compose()).n_trials == 3
    assert resolve(Composer(["experiment=smoke"]).compose()).trainer.iters == 4
    assert resolve(Composer(["experiment=smoke", "trainer.iters=6"]).compose()).trainer.iters == 6


def test_own_data_gets_the_full_budget() -> None:
    own = resolve(Composer(["data.path=rows.jsonl"]).compose())
    assert (own.data.path, own.n_trials, own.trainer.iters) == ("rows.jsonl", 32, 300)
    assert (own.search.confirm.k, own.search.confirm.repeats) == (3, 3)
