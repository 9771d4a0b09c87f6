"""The README's commands, run in its order in one empty folder; what they print must look as it shows.

Training commands run on the tiny model with a small budget. The first one also runs as written, marked `slow`.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import pytest
import yaml
from omegaconf import OmegaConf

from sweeps.compose import Composer
from tests.sweeps.helpers import Place
from tests.sweeps.test_telling import Server

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROGRAMS = Path(sys.executable).parent  # where lora-sweep and mlx_lm.generate are installed
SMALL = {"model": "tiny", "trainer.iters": "4", "trainer.eval_every": "2", "trainer.slots": "1"}
DATED = re.compile(r"lora-\d{8}-\d{6}")  # the name of a study that was given none
# They install something, or would start these tests again.
NOT_RUN = ("pip", "git", "uv sync", "uv run pytest", "uv run --no-sync", "uv run mlflow server")


class Shown(NamedTuple):
    """A command of the README and the lines shown below it."""

    command: str
    output: list[str]

    @property
    def words(self) -> list[str]:
        return shlex.split(self.command.removeprefix("uv run "))


def shown() -> list[Shown]:
    commands: list[Shown] = []
    for block in re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", "").splitlines():
            if line.startswith("$ "):
                commands.append(Shown(line.removeprefix("$ "), []))
            else:
                commands[-1].output.append(line)
    return commands


OWN_TEST = ["lora-sweep", "ui"]
SHARED = "postgresql+psycopg://lora@db/lora"
COMMANDS = [each for each in shown() if not each.command.startswith(NOT_RUN) and SHARED not in each.command]


def run(words: list[str], folder: Path) -> tuple[int, str]:
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    environment["UV_RUN_RECURSION_DEPTH"] = "1"  # as `uv run` has it
    program = [str(PROGRAMS / words[0]), *words[1:]]
    # The default search took 6 minutes on two cores; it may have one of a slow machine. Only what hangs takes an hour.
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, timeout=3600)
    return done.returncode, done.stdout + done.stderr


def small(words: list[str]) -> list[str]:
    """The same command on the tiny model, with a quarter of its trials, each repeated once unless it says how often."""
    if words[0] != "lora-sweep" or words[1] not in ("train", "search", "plan") or "--cfg" in words:
        return words
    trials = next((-(-int(word.removeprefix("n_trials=")) // 4) for word in words if word.startswith("n_trials=")), 2)
    axes = {key for key, _, value in (word.partition("=") for word in words) if "," in value}
    budget = {key: value for key, value in SMALL.items() if key not in axes}
    if words[1] != "train":
        budget["n_trials"] = str(trials)
        budget |= {"search.confirm.repeats": "1"} if "search.confirm" not in " ".join(words) else {}
    return [word for word in words if word.partition("=")[0] not in budget] + [f"{k}={v}" for k, v in budget.items()]


def skeleton(line: str) -> str:
    """What any run prints at the start of such a line: `trial-0003  5.26` becomes `trial-#`."""
    return re.sub(r"\d+(\.\d+)?", "#", line).split()[0]


def named_study(folder: Path) -> str:
    """What the README's first command named its study."""
    (found,) = (path.name for path in (folder / "outputs").iterdir() if DATED.fullmatch(path.name))
    return found


def missing(expected: list[str], printed: str) -> list[str]:
    """Lines of `expected` without a line in `printed` that begins alike. `…` stands for anything."""
    there = {skeleton(line) for line in printed.splitlines() if line.strip()}
    return [line for line in expected if line.strip() and skeleton(line) != "…" and skeleton(line) not in there]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder but for my_data: the README's own rows for training, the demo's for validation."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_data").mkdir()
    rows = re.search(r"^```json\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert rows is not None
    (folder / "my_data" / "train.jsonl").write_text(rows[1] * 4)
    shutil.copy(ROOT / "lora_core" / "demo" / "valid.jsonl", folder / "my_data")
    return folder


@pytest.mark.parametrize(
    "each", [each for each in COMMANDS if each.words[:2] != OWN_TEST], ids=lambda each: each.command
)
def test_commands_print_what_is_shown(each: Shown, folder: Path) -> None:
    named = named_study(folder) if DATED.search(each.command) else ""
    refused = each.output and each.output[0].startswith("lora-sweep: ")
    code, printed = run(small([DATED.sub(named, word) for word in each.words]), folder)
    assert code == (2 if refused else 0), printed
    if refused:
        assert printed.strip().endswith(DATED.sub(named, "\n".join(each.output)).strip())
    else:
        assert not missing(each.output, printed), printed


@pytest.mark.slow
def test_a_shared_study_is_joined_by_the_same_command(folder: Path, database: str) -> None:
    each, _ = (each for each in shown() if SHARED in each.command)
    words = [word.replace(SHARED, database).replace("/shared", str(folder)) for word in small(each.words)]
    for _ in range(2):
        code, printed = run(words, folder)
        assert code == 0 and "wins with" in printed, printed


@pytest.mark.slow
def test_machines_without_a_common_folder(tmp_path: Path, database: str) -> None:
    """The second one, with a folder that is empty, finds all trained."""
    _, each = (each for each in shown() if SHARED in each.command)
    server = Server(Place(tmp_path))
    try:
        words = [word.replace(SHARED, database) for word in small(each.words)]
        words = [re.sub(r"http://[\d.:]+", server.uri, word) for word in words]
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            code, printed = run(words, tmp_path / name)
            assert code == 0 and "wins with" in printed, printed
        assert "2 of 2 trials have ended already" in printed
    finally:
        server.kill()


def test_the_ui_serves_the_newest_study(folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (ui,) = (each for each in COMMANDS if each.words[1:2] == ["ui"])
    program = [str(PROGRAMS / "lora-sweep"), *ui.words[1:], "--no-browser", "--port", str(port)]
    with subprocess.Popen(program, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            printed = [process.stdout.readline() for _ in ui.output]
            assert [line.split(":")[0] for line in ui.output] == [line.strip().split(":")[0] for line in printed]
            assert urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
    with pytest.raises(OSError):
        urlopen(f"http://127.0.0.1:{port}/health", timeout=1)


def test_pictures_and_files_named_in_it_exist() -> None:
    named = re.findall(r"\]\(([^)#:]+)\)", README)
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_settings_table_has_the_defaults() -> None:
    composed = Composer(["data.path=rows.jsonl"]).compose()
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \|", README, re.MULTILINE)
    assert len(rows) > 10
    for key, default in rows:
        assert OmegaConf.select(composed, key) == yaml.safe_load(default), key


@pytest.mark.slow
def test_the_first_command_as_written(tmp_path: Path) -> None:
    """The default search on SmolLM2, then the command it prints: the adapter must change the answer."""
    first = COMMANDS[0]
    assert first.words == ["lora-sweep", "search"]
    code, printed = run(first.words, tmp_path)
    assert code == 0, printed
    assert not missing(first.output, printed)
    (study,) = (tmp_path / "outputs").glob("*/study.json")
    assert json.loads(study.read_text())["state"] == "complete"
    (line,) = (line for line in printed.splitlines() if line.startswith("  uv run mlx_lm.generate "))
    words = [*shlex.split(line)[2:-1], "Set the library light to 5 percent.", "--max-tokens", "20"]
    at = words.index("--adapter-path")
    with_it, without = run(words, tmp_path), run(words[:at] + words[at + 2 :], tmp_path)
    assert with_it[0] == without[0] == 0, with_it[1] + without[1]
    assert "level=5" in with_it[1] and "level=5" not in without[1]
