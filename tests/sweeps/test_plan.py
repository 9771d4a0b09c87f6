"""What a plan says, and that it leaves no trace."""

import hashlib
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lora_core
from sweeps.cli import main
from sweeps.plan import duration
from tests.sweeps.helpers import Place, quick

TINY = "plan model=tiny search=quick n_trials=8"
Printed = Callable[..., list[str]]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    def run(argv: list[str]) -> list[str]:
        assert main(argv) == 0
        return capsys.readouterr().out.splitlines()

    return run


def line(lines: list[str], start: str) -> str:
    (found,) = [each for each in lines if each.startswith(start)]
    return found


def state(root: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(root.rglob("*"))
    }


def test_the_plan_of_a_new_study(folder: Path, printed: Printed) -> None:
    rank = "lora_parameters.rank=2,4"
    lines = printed([*TINY.split(), rank])
    assert line(lines, "Model ").endswith("(0.165M parameters, 4 blocks)")
    assert line(lines, "Data ").startswith("Data builtin:demo (200 train, 40 valid, 40 test rows)")
    assert line(lines, f"Axis {rank}")
    slots = int(line(lines, "Slots ").removeprefix("Slots "))
    rows = [each.split() for each in lines if re.match(r" +\d+ ", each)]
    assert [int(row[0]) for row in rows] == [1, 2]
    assert [int(row[0]) for row in rows if row[1] == "★"] == [slots]
    # A and B have rank × (in + out) numbers.
    least, most = (int(text.replace(",", "")) for text in re.findall(r"[\d,]+", line(lines, "Trainable")))
    assert most == 2 * least > 0
    assert re.fullmatch(r"Memory about [\d.]+ GB", line(lines, "Memory"))
    assert " for 8 trials and the default settings, " in line(lines, "Time about ")
    assert shlex.split(lines[-1]) == ["lora-sweep", "search", *TINY.split()[1:], rank, f"trainer.slots={slots}"]
    assert list(folder.iterdir()) == []


def test_a_number_of_slots_that_was_given(folder: Path, printed: Printed) -> None:
    lines = printed([*TINY.split(), "trainer.slots=2", "search/pruner=none", "search/sampler=random"])
    assert line(lines, "Slots ") == "Slots 2"
    assert lines[-1].count("trainer.slots") == 1
    assert "pruner" not in line(lines, "Time about ")
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A study with three of its trials."""
    place = Place(tmp_path_factory.mktemp("begun"))
    assert quick(place, "trainer.slots=1", "n_trials=3") == 0
    return place


def planned(place: Place, *more: str) -> list[str]:
    return ["plan", *place.search_arguments(*more)[1:]]


def test_the_plan_of_a_study_that_exists(begun: Place, printed: Printed) -> None:
    before = state(begun.root)
    lines = printed(planned(begun))
    assert "3 of 8 trials have ended already" in lines
    assert " for 5 more trials, " in line(lines, "Time about ")
    assert line(lines, "Slots ") == "Slots 1"
    assert lines[-1].strip().startswith("lora-sweep search ") and lines[-1].endswith(" study=s")
    assert state(begun.root) == before


def test_nothing_is_left_to_train(begun: Place, printed: Printed) -> None:
    before = state(begun.root)
    lines = printed(planned(begun, "n_trials=3"))
    assert lines[-1] == "Nothing is left to train."
    assert state(begun.root) == before


def test_repeats_of_the_best_are_planned(begun: Place, printed: Printed) -> None:
    before = state(begun.root)
    confirm = ["search.confirm.k=2", "search.confirm.repeats=4"]
    lines = printed(planned(begun, *confirm))
    assert " for 5 more trials and 8 repeats of the best, " in line(lines, "Time about ")
    lines = printed(planned(begun, "n_trials=3", *confirm))
    assert " for 8 repeats of the best, " in line(lines, "Time about ")
    assert state(begun.root) == before


def test_a_space_that_is_smaller_than_the_budget(folder: Path, printed: Printed) -> None:
    lines = printed([*TINY.split(), "lora_parameters.rank=2,4", "optimizer.learning_rate=1e-3"])
    assert " for 2 trials and the default settings, " in line(lines, "Time about ")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["lora_parameters.rnk=8"], ["lora_parameters.rank"]),
        (["lora_parameters.rank=interval(8,4)"], ["lora_parameters.rank"]),
        (["num_layers=2,5"], ["num_layers=2,5", "4"]),
        (["lora_parameters.keys=[attn],[self_attn.q_proj]"], ["Axis lora_parameters.keys=[attn]"]),
        (["data.path=nowhere"], ["data.path=nowhere"]),
        (["output_dir=/dev/null/out"], ["output_dir", "/dev/null"]),
        (["storage=sqlite:////dev/null/optuna.db"], ["storage", "/dev/null"]),
        (["storage=sqlite:///no/such/optuna.db"], ["storage", "no/such"]),
        (["tracking.uri=sqlite:////dev/null/mlflow.db"], ["tracking.uri", "/dev/null"]),
        (["tracking.uri=http://127.0.0.1:9"], ["tracking.uri", "127.0.0.1:9"]),
        (["storage=postgresql+psycopg://127.0.0.1:9/o"], ["storage"]),
        (["-m"], ["plan takes no -m"]),
    ],
)
def test_bad_input(more: list[str], words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY.split(), *more]) == 2
    said = capsys.readouterr().err
    assert 1 <= len(said.splitlines()) <= 3 and "Traceback" not in said
    assert all(word in said for word in words), said
    assert list(folder.iterdir()) == []


def test_a_storage_that_is_no_database(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "optuna.db").write_text("not a database, but long enough to be taken for one" * 20)
    assert main(TINY.split()) == 2
    assert "storage=sqlite:///optuna.db cannot be opened" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ("optimizer.weight_decay=0.5", "optimizer.weight_decay: 0.01 → 0.5"),
        ("lora_parameters.rank=2,4,8", "axis lora_parameters.rank: 2,4 → 2,4,8"),
        ("output_dir=elsewhere", "output_dir="),
        ("storage=sqlite:///elsewhere.db", None),
    ],
)
def test_a_study_with_other_settings(
    other: str, told: str | None, begun: Place, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(begun.root)
    # Trials that lie in the folder are known without the storage, as they are to a search.
    assert main(planned(begun, other, "n_trials=3")) == (0 if told is None else 2)
    said = capsys.readouterr()
    assert (told or "Nothing is left to train.") in (said.err or said.out)
    assert state(begun.root) == before and list(folder.iterdir()) == []


def test_other_settings_in_the_folder_alone(begun: Place, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = ["storage=sqlite:///elsewhere.db", "optimizer.weight_decay=0.5"]
    assert main(planned(begun, *elsewhere)) == 2
    assert "optimizer.weight_decay: 0.01 → 0.5" in capsys.readouterr().err


def test_measuring_dies(
    folder: Path, short_of_memory: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    short_of_memory("error", 0, 10**9, 3)
    assert main(TINY.split()) == 1
    said = capsys.readouterr().err
    assert "out of memory" in said and "Traceback" not in said and len(said.splitlines()) == 1
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_memory_is_foretold_within_a_quarter(tmp_path: Path, printed: Printed) -> None:
    """On SmolLM2, in a space of mixed depth whose largest settings are those of the trials; three at a time."""
    place = Place(tmp_path)
    for name in ("train", "valid"):
        shutil.copy(Path(lora_core.__file__).with_name("demo") / f"{name}.jsonl", place.data)
    largest = "num_layers:all,lora_parameters.rank:32,optimizer.learning_rate"
    words = [
        "model=smollm2", "num_layers=4,all", "lora_parameters.rank=8,32", "n_trials=3", "trainer.slots=3",
        "trainer.iters=2", "trainer.eval_every=2", "trainer.eval_rows=4", "search/sampler=random", "search/pruner=none",
        "search.enqueue=[" + ",".join(f"{{{largest}:{rate}e-3}}" for rate in (1, 2, 3)) + "]",
    ]  # fmt: skip
    lines = printed(planned(place, *words))
    foretold = float(line(lines, "Memory about").split()[2])
    alone, _ = (float(each.split()[-2]) for each in lines if each.endswith(" GB") and each.startswith(" "))
    assert quick(place, *words) == 0
    used = max(trial.metrics["peak_memory_gb"] for trial in place.trials())
    assert foretold == pytest.approx(used, rel=0.25)
    assert alone != pytest.approx(used, rel=0.25)


def test_durations() -> None:
    shown = [duration(seconds) for seconds in (0.24, 9.94, 45.4, 99.4, 125, 5400, 7200)]
    assert shown == ["0.2 s", "9.9 s", "45 s", "99 s", "2 min", "90 min", "2.0 h"]
