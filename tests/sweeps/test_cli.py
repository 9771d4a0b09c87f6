"""The command line as a user meets it; training is replaced by a stand-in that keeps what it is given."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sweeps
from lora_core.errors import UserError
from sweeps.cli import main

HEAVY = {
    "hydra",
    "omegaconf",
    "optuna",
    "mlflow",
    "mlx",
    "mlx_lm",
    "transformers",
    "pandas",
    "plotly",
    "rich",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """The arguments of every `sweeps.train.run` and `sweeps.search.run`."""
    kept: list[tuple[Any, ...]] = []
    for name in ("train", "search"):
        module = ModuleType(f"sweeps.{name}")
        module.run = lambda *given: kept.append(given) or 0  # type: ignore[attr-defined,func-returns-value]
        monkeypatch.setitem(sys.modules, f"sweeps.{name}", module)
        monkeypatch.setattr(sweeps, name, module, raising=False)
    yield kept


@pytest.mark.parametrize("argv", ["[]", "['--help']", "['--version']"])
def test_help_is_instant(argv: str) -> None:
    code = f"import sys; from sweeps.cli import main; main({argv}); print('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.partition("LOADED ")[2].split())
    assert "sweeps.cli" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("flags", [["--info"], ["--cfg", "job"]])
def test_a_reader_that_has_gone_is_no_error(flags: list[str]) -> None:
    """As `lora-sweep train --info | head -1` has it."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "sweeps", "train", *flags], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_module_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "sweeps", "--help"], capture_output=True, text=True, check=True)
    assert "lora-sweep search" in done.stdout and "lora-sweep plan" in done.stdout


@pytest.mark.parametrize("command", ["search", "plan"])
def test_the_help_of_a_command_lists_groups_and_keys(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "lora_parameters: attention, default, rslora" in printed
    assert "eval_every: 8" in printed


def test_train_passes_the_configuration_on(calls: list[tuple[Any, ...]], folder: Path) -> None:
    assert main(["train", "model=tiny", "lora_parameters.rank=16"]) == 0
    config, written, argv, quiet = calls[0]
    assert (config.model.path, config.lora_parameters.rank) == ("builtin:tiny", 16)
    assert written == {"model", "lora_parameters.rank"}
    assert (argv, quiet) == (["model=tiny", "lora_parameters.rank=16"], False)
    assert list(folder.iterdir()) == []


def test_quiet_is_passed_on(calls: list[tuple[Any, ...]]) -> None:
    assert main(["train", "--quiet", "model=tiny"]) == 0
    assert main(["train", "-m", "seed=1,2", "--quiet"]) == 0
    assert [call[3] for call in calls] == [True] * 3
    assert main(["search", "lora_parameters.rank=4,8", "--quiet"]) == 0
    (job,) = calls[-1]
    assert job.quiet and job.argv == ["--quiet", "lora_parameters.rank=4,8"]  # as resumed, or joined by workers
    assert main(["plan", "--quiet", "lora_parameters.rank=4,8"]) == 2


def test_search_passes_the_job_on(calls: list[tuple[Any, ...]], folder: Path) -> None:
    argv = ["lora_parameters.rank=4,8", "study=mine", "lora_parameters.scale_ratio=tag(log,interval(0.5,8))"]
    assert main(["search", *argv]) == 0
    (job,) = calls[0]
    assert job.config.study == "mine"
    assert job.argv == argv
    assert "lora_parameters.rank=4,8" in job.config.search.space
    assert list(folder.iterdir()) == []


def test_a_folder_of_ones_own(calls: list[tuple[Any, ...]], folder: Path) -> None:
    (folder / "my" / "search").mkdir(parents=True)
    (folder / "my" / "search" / "mine.yaml").write_text("name: mine\nspace: [seed=1]\n")
    assert main(["search", "--config-dir", "my", "search=mine"]) == 2
    (folder / "my" / "search" / "mine.yaml").write_text("name: mine\nspace: ['num_layers=1,2']\n")
    assert main(["search", "search=mine", "--config-dir", "my"]) == 0
    (job,) = calls[0]
    assert job.config.search.name == "mine"
    assert job.argv == ["--config-dir", "my", "search=mine"]


def test_the_configuration_is_shown(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["train", "--cfg", "job", "--package", "lora_parameters", "lora_parameters.rank=3"]) == 0
    assert "rank: 3" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def test_the_configuration_of_a_search_shows_its_axes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--cfg", "job", "lora_parameters.rank=1,2", "optimizer.name=adam"]) == 0
    printed = capsys.readouterr().out
    assert "- lora_parameters.rank=1,2" in printed
    assert "name: adam\n" in printed


def test_multirun_keeps_hydras_folders(calls: list[tuple[Any, ...]], folder: Path) -> None:
    assert main(["train", "-m", "model=tiny", "lora_parameters.rank=4,8", "study=mine"]) == 0
    configs = [call[0] for call in calls]
    assert [config.lora_parameters.rank for config in configs] == [4, 8]
    assert [config.study for config in configs] == ["mine-0", "mine-1"]
    assert [call[4].parent.parent.parent for call in calls] == [folder / "multirun"] * 2
    assert [call[4].name for call in calls] == ["0", "1"]
    assert calls[1][1] == {"model", "lora_parameters.rank", "study"}
    assert [path.name for path in folder.iterdir()] == ["multirun"]


def test_multirun_with_settings_that_some_jobs_have_a_use_for(calls: list[tuple[Any, ...]]) -> None:
    assert main(["train", "-m", "train_type=lora,full", "lora_parameters.rank=4"]) == 0
    assert [call[0].train_type for call in calls] == ["lora", "full"]


def test_multirun_with_an_adapter_path(calls: list[tuple[Any, ...]]) -> None:
    assert main(["train", "-m", "lora_parameters.rank=4,8", "adapter_path=out"]) == 0
    assert [call[0].adapter_path for call in calls] == ["out/0", "out/1"]


def test_multirun_fails_when_a_job_does(calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["sweeps.train"], "run", lambda config, *rest: int(config.seed == 1))
    assert main(["train", "-m", "seed=1,2"]) == 1


def test_multirun_leaves_nothing_of_a_job_that_is_refused(
    calls: list[tuple[Any, ...]], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: Any, *rest: Any) -> int:
        if config.seed == 1:
            raise UserError("not this one")
        return 0

    monkeypatch.setattr(sys.modules["sweeps.train"], "run", run)
    assert main(["train", "-m", "seed=1,2"]) == 2
    assert capsys.readouterr().err == "lora-sweep: not this one\n"
    assert [file.parent.name for file in folder.rglob(".hydra")] == ["1"]


def test_ctrl_c(calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["sweeps.search"], "run", _raise(KeyboardInterrupt()))
    assert main(["search"]) == 130


def test_our_own_bugs_keep_their_traceback(calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["sweeps.train"], "run", _raise(ValueError("ours")))
    for argv in (["train"], ["train", "-m", "seed=1,2"]):
        with pytest.raises(ValueError, match="ours"):
            main(argv)


def _raise(error: BaseException) -> Any:
    def run(*given: Any) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    "argv",
    [
        "trian", "train rank=3", "train lora_parameters.rank=abc", "train lora_parameters.rank=0",
        "train lora_parameters.scale=32 lora_parameters.scale_ratio=1", "train lora_parameters.dropout=1.2",
        "train model=tny", "train key", "train a=[1", "train lora_parameters.rank=4,8", "train study=../out",
        "train data=local", "train --cfg nothing", "train --nothing", "train --config-dir nowhere",
        "train --resolve", "train --config-name other", "train --cfg job rank=3", "train --cfg job --info",
        "train --cfg job -p nothing", "train -m lora_parameters.rank=4,0", "train -m model=tny,tiny",
        "train -m lora_parameters.rank=interval(4,8)",
        "search -m", "search lora_parameters.rank=range(4,4)", "search lora_parameters.rank=interval(8,4)",
        "search lora_parameters.rnk=4,8", "search seed=1,2", "search lora_parameters.scale=32",
        "search --cfg job lora_parameters.rnk=4,8", "search n_trials=0", "search storage=optuna.db",
        "search lora_parameters.rank=4,8 lora_parameters.rank=4",
    ],
)  # fmt: skip
def test_bad_input(argv: str, folder: Path, capsys: pytest.CaptureFixture[str], calls: list[Any]) -> None:
    assert main(argv.split()) == 2
    said = capsys.readouterr().err
    assert 1 <= len(said.splitlines()) <= 3
    assert "Traceback" not in said
    assert list(folder.iterdir()) == []
    assert calls == []
