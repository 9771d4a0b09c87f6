"""The winner in the model registry: one version, loaded from a code file, and it answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from reports.study import load
from sweeps.champion import ALIAS, register
from sweeps.cli import main
from sweeps.store import Store
from tests.sweeps.helpers import Place

ASK = """
import json, mlflow, sys
mlflow.set_tracking_uri(sys.argv[1])
print(json.dumps(mlflow.pyfunc.load_model("models:/s@champion").predict(["1+1=", "2+2="])))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("champion"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reports.writer.build", lambda folder: folder / "trial-0000" / "trial.json")
        assert main(place.search_arguments("n_trials=2")) == 0
    return place


@pytest.fixture
def uri(place: Place) -> str:
    return f"sqlite:///{place.root}/mlflow.db"


def test_the_winner_is_the_champion(place: Place, uri: str) -> None:
    best = load(place.folder()).winner
    assert best is not None
    made = MlflowClient(uri).get_model_version_by_alias("s", ALIAS)
    assert (made.tags["sweep.trial"], made.tags["sha256"]) == (best.name, best.adapter_sha256)
    assert made.run_id == place.record().runs[best.name]


def test_it_answers_without_a_pickle(place: Place, uri: str) -> None:
    done = subprocess.run([sys.executable, "-c", ASK, uri], capture_output=True, text=True, cwd=place.root)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert len(answers) == 2 and all(isinstance(answer, str) for answer in answers)
    kept = {path.name for path in Path(place.root / "mlruns").rglob(f"{ALIAS}/**/*")}
    assert {"champion_model.py", "adapters.safetensors", "MLmodel"} <= kept
    assert not [name for name in kept if name.endswith((".pkl", ".pickle", ".bin"))]


def test_the_same_winner_is_registered_once(place: Place, uri: str) -> None:
    client = MlflowClient(uri)
    study = load(place.folder())
    store = Store(uri, study.record.tracking["experiment"])
    register(store, study)
    assert len(client.search_model_versions("name='s'")) == 1
    assert study.winner is not None
    study.winner.adapter_sha256 = "another"
    assert study.winner.adapter is not None
    exported = Path(study.winner.adapter) / "peft"
    exported.mkdir()
    (exported / "adapter_model.safetensors").touch()
    register(store, study)
    assert not list((place.root / "mlruns").rglob("adapter_model.safetensors"))
    assert [version.version for version in client.search_model_versions("name='s'")] == [2, 1]
    assert client.get_model_version_by_alias("s", ALIAS).version == 2


def test_what_mlx_lm_cannot_load_is_none(place: Place, uri: str) -> None:
    study = load(place.folder())
    store, best = Store(uri, study.record.tracking["experiment"]), study.winner
    assert best is not None
    study.record.study, best.config["train_type"] = "other", "dora"
    for bits, made in ((6, 0), (8, 1)):
        study.record.model["bits"] = bits
        register(store, study)
        assert len(MlflowClient(uri).search_model_versions("name='other'")) == made


def test_the_studys_run_says_what_was_found(place: Place, uri: str) -> None:
    record = place.record()
    note = MlflowClient(uri).get_run(record.tracking["run_id"]).data.tags["mlflow.note.content"]
    best = load(place.folder()).winner
    assert best is not None and best.value is not None
    first, settings, gain, *_ = note.split("  \n")
    assert first == f"**{best.name} wins with a validation loss of {best.value:.4f}**"
    assert "rank " in settings and "below the base model" in gain
    assert "```sh\nmlx_lm.generate --model" in note
