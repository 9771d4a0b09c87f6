"""Whatever is wrong is said in one to three lines, with exit code 2, and leaves nothing behind."""

import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.cli import main
from tests.sweeps.helpers import Place, quick, write_data

TINY = "model=tiny"
SEARCH = f"search {TINY} search=quick n_trials=2"
APART = f"{SEARCH} storage=postgresql+psycopg://tester@127.0.0.1:9/db cluster.shared_folder=false"


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Runs a command line that must be refused with all of `words`."""

    def check(argv: str, *words: str) -> None:
        assert main(argv.split()) == 2
        said = capsys.readouterr().err
        assert 1 <= len(said.splitlines()) <= 3, said
        assert "Traceback" not in said
        for word in words:
            assert word in said, said
        assert list(folder.iterdir()) == []

    return check


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("train lora_parameters.rnk=8", ["rnk", "lora_parameters.rank"]),
        ("train lora_parameters.rank=big", ["lora_parameters.rank", "big"]),
        ("train lora_parameters.scale=32 lora_parameters.scale_ratio=1", ["scale", "scale_ratio"]),
        ("train lora_parameters.rank=0", ["lora_parameters.rank", "0"]),
        ("train lora_parameters.dropout=1.2", ["lora_parameters.dropout", "1.2"]),
        ("search lora_parameters.rank=range(4,4)", ["lora_parameters.rank"]),
        ("search lora_parameters.rank=interval(8,4)", ["lora_parameters.rank"]),
        ("search lora_parameters.rnk=4,8", ["lora_parameters.rank"]),
        (f"{SEARCH} tracking.uri=http://127.0.0.1:9", ["tracking.uri", "127.0.0.1:9"]),
        (f"train {TINY} tracking.uri=http://127.0.0.1:9", ["tracking.uri", "127.0.0.1:9"]),
        (f"train -m {TINY} tracking.uri=http://127.0.0.1:9 seed=1,2", ["tracking.uri", "127.0.0.1:9"]),
        (f"{SEARCH} study=../x", ["study is '../x'"]),
        (f"{SEARCH} study=train", ["study is 'train'"]),
        (f"{SEARCH} storage=nowhere", ["storage is 'nowhere'"]),
        (f"{SEARCH} search/pruner=mdian", ["search/pruner=mdian", "median"]),
        (f"{SEARCH} cluster=ray cluster.address=head:6379", ["cluster.address=head:6379", "PostgreSQL"]),
        (f"{SEARCH} cluster.shared_folder=false", ["storage", "PostgreSQL", "cluster.shared_folder"]),
        (f"{APART} tracking.uri=sqlite:///mlflow.db", ["tracking.uri", "sqlite:///mlflow.db", "an MLflow server"]),
        (f"{APART} tracking.uri=http://127.0.0.1:9 cluster=ray cluster.shared_folder=false", ["cluster.name", "local"]),
        ("plan lora_parameters.rnk=4,8", ["lora_parameters.rank"]),
        (f"{SEARCH} name=q4", ["search.name", "All: lora-sweep search --cfg job"]),
        ("train name=q4", ["search.name", "All: lora-sweep train --cfg job"]),
        ("train resume_strict=2", ["resume_strict is 2: expected true or false"]),
        ("train fuse=1", ["fuse is 1: expected true or false"]),
        ("train resume_strict=false", ["resume_adapter_file=PATH"]),
        (f"{SEARCH} resume_strict=false", ["resume_adapter_file=PATH"]),
        ("train train_type=full lora_parameters.rank=16", ["lora_parameters.rank: train_type=full has no adapters"]),
        ("train -m train_type=full lora_parameters=default,rslora", ["lora_parameters: train_type=full has no"]),
        ("search train_type=full optimizer.lora_plus_ratio=4", ["optimizer.lora_plus_ratio: train_type=full has no"]),
        (f"{SEARCH} adapter_path=out", ["adapter_path=out: each trial of a search has a folder of its own"]),
        # A folder that not even root can write to.
        (f"{SEARCH} output_dir=/dev/null/out", ["output_dir", "/dev/null"]),
        (f"train {TINY} output_dir=/dev/null/out", ["output_dir", "/dev/null"]),
        (f"train {TINY} adapter_path=/dev/null/out", ["adapter_path", "/dev/null"]),
    ],
)
def test_known_before_the_model_is_loaded(argv: str, words: list[str], refused: Callable[..., None]) -> None:
    refused(argv, *words)


@pytest.mark.parametrize(
    "argv",
    [
        "report s", "report s other", "status s", "stop s", "stop s trial-0001", "sync s", "generate s hello",
        "export s --format peft", f"compare s 1 2 --prompts {__file__}",
    ],
)  # fmt: skip
def test_a_study_that_is_not_there(argv: str, refused: Callable[..., None]) -> None:
    refused(argv, "No study 's': outputs holds no studies")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("train model.path=nowhere", ["model.path=nowhere"]),
        ("train -m model.path=nowhere seed=1", ["model.path=nowhere"]),
        ("plan model.path=nowhere", ["model.path=nowhere"]),
        (f"{SEARCH} search.warm_start=[nowhere]", ["No study 'nowhere'"]),
        (f"train {TINY} num_layers=5", ["num_layers is 5", "4"]),
        (f"{SEARCH} num_layers=2,5", ["num_layers=2,5", "4"]),
        (f"train {TINY} lora_parameters.keys=[q_proj]", ["lora_parameters.keys", "'q_proj'", "self_attn.q_proj"]),
        (
            f"{SEARCH} lora_parameters.keys=[self_attn.q_proj],[attn]",
            ["Axis lora_parameters.keys=[attn]", "matches no linear layer"],
        ),
        (f"{SEARCH} storage=sqlite:////dev/null/optuna.db", ["storage=sqlite:////dev/null/optuna.db"]),
        (f"{SEARCH} tracking.uri=sqlite:////dev/null/mlflow.db", ["tracking.uri=sqlite:////dev/null/mlflow.db"]),
        (f"train {TINY} resume_adapter_file=nowhere", ["resume_adapter_file=nowhere"]),
    ],
)
def test_known_once_the_model_is_loaded(argv: str, words: list[str], refused: Callable[..., None]) -> None:
    refused(argv, *words)


def test_keys_of_a_config_group_are_checked_too(tmp_path: Path, refused: Callable[..., None]) -> None:
    group = tmp_path / "my" / "lora_parameters"
    group.mkdir(parents=True)
    (group / "other.yaml").write_text("defaults: [default]\nkeys: [attention.wq]\n")
    refused(
        f"{SEARCH} --config-dir {tmp_path}/my lora_parameters=default,other",
        "Axis lora_parameters=other", "'attention.wq' matches no linear layer",
    )  # fmt: skip


def test_a_gguf_file_of_a_kind_that_is_not_supported(tmp_path: Path, refused: Callable[..., None]) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("general.architecture") + struct.pack("<I", 8) + text("bert")
    (tmp_path / "bert.gguf").write_bytes(header.ljust(256, b"\0"))
    refused(f"train model.path={tmp_path}/bert.gguf", "bert")


GOOD = json.dumps({"prompt": "1+1=", "completion": "2"})


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("train", '{"prompt": "1+1="', ["train.jsonl:3", "JSON"]),
        ("valid", '{"promt": "1+1=", "completion": "2"}', ["valid.jsonl:3", "prompt"]),
        ("train", json.dumps({"prompt": "1" * 600, "completion": "2"}), ["train.jsonl:3", "512"]),
        ("train", None, ["train.jsonl is empty"]),
        ("valid", "", ["no valid.jsonl", "valid_fraction"]),
    ],
)
def test_data(name: str, line: str | None, words: list[str], tmp_path: Path, refused: Callable[..., None]) -> None:
    """`line`: the third of the file; None: no line at all; empty: no file."""
    file = write_data(tmp_path / "data") / f"{name}.jsonl"
    if line == "":
        file.unlink()
    else:
        file.write_text(f"{GOOD}\n{GOOD}\n{line}\n" if line else "")
    refused(f"train {TINY} data.path={tmp_path}/data", *words)


def test_data_that_is_not_there(refused: Callable[..., None]) -> None:
    refused(f"{SEARCH} data.path=nowhere/at/all", "data.path=nowhere/at/all")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with an adapter of rank 4 on two blocks, and a study."""
    place = Place(tmp_path_factory.mktemp("trained"))
    length = ["trainer.iters=1", "trainer.eval_every=1"]
    assert main(["train", *place.arguments(*length, "lora_parameters.rank=4", "num_layers=2", "study=t")]) == 0
    assert quick(place, *length, "n_trials=1") == 0
    return place


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (f"train {TINY} lora_parameters.rank=8 num_layers=2", ["of other shape", "lora_a"]),
        (f"train {TINY} lora_parameters.rank=4 num_layers=3", ["missing", "model.layers.1"]),
        (f"{SEARCH} lora_parameters.rank=4,8 num_layers=2", ["lora_parameters.rank=4,8", "resume_strict=false"]),
    ],
)
def test_an_adapter_that_does_not_fit(
    argv: str, words: list[str], trained: Place, refused: Callable[..., None]
) -> None:
    refused(f"{argv} resume_adapter_file={trained.folder('train/t')}/adapters", *words)


def test_a_study_with_other_settings(trained: Place, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(trained.root.rglob("*"))
    same = ["trainer.iters=1", "trainer.eval_every=1", "n_trials=1"]
    for other, told in (
        (["optimizer.weight_decay=0.5"], "optimizer.weight_decay: 0.01 → 0.5"),
        (["lora_parameters.rank=2,4,8"], "axis lora_parameters.rank: 2,4 → 2,4,8"),
        ([f"storage=sqlite:///{trained.root}/optuna.db", f"output_dir={folder}/elsewhere"], "output_dir="),
    ):
        capsys.readouterr()
        assert main(trained.search_arguments(*same, *other)) == 2
        said = capsys.readouterr().err
        assert told in said and len(said.splitlines()) <= 3
    assert sorted(trained.root.rglob("*")) == before
    assert list(folder.iterdir()) == []


def test_a_study_folder_that_cannot_be_written_to(
    trained: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(prefix: str, dir: Path) -> str:
        if dir == trained.folder():
            raise PermissionError(13, "Permission denied")
        return real(prefix=prefix, dir=dir)

    real = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    assert main(trained.search_arguments("trainer.iters=1", "trainer.eval_every=1", "n_trials=1")) == 2
    assert f"{trained.folder()} cannot be written to" in capsys.readouterr().err


def test_data_that_has_changed_since(trained: Place, capsys: pytest.CaptureFixture[str]) -> None:
    kept = trained.data.with_name("kept")
    shutil.copytree(trained.data, kept)
    write_data(trained.data, rows=13)
    try:
        argv = trained.search_arguments("trainer.iters=1", "trainer.eval_every=1", "n_trials=1")
        assert main(argv) == 2
        assert "contents of the data" in capsys.readouterr().err
    finally:
        shutil.rmtree(trained.data)
        kept.rename(trained.data)


def test_a_tracker_that_cannot_be_opened_leaves_no_study(trained: Place, folder: Path) -> None:
    """Where the tracker is refused, the study that was just made is taken out of its storage again."""
    import optuna

    assert main(trained.search_arguments("study=new", "tracking.uri=sqlite:////dev/null/m.db")) == 2
    assert optuna.get_all_study_names(f"sqlite:///{trained.root}/optuna.db") == ["s"]
    assert not trained.folder("new").exists()
