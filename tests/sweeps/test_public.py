"""Secrets in addresses stay where they were given."""

from pathlib import Path

import pytest

from lora_core.errors import UserError
from sweeps.connect import first_line
from sweeps.public import public
from sweeps.space import make_job
from tests.sweeps.helpers import Place, quick


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg://me:secret@db:5432/lora", "postgresql+psycopg://me@db:5432/lora"),
        ("postgresql://me:sec/ret@db/lora", "postgresql://me@db/lora"),
        ("mysql://db/lora?user=me&password=secret&ssl=1", "mysql://db/lora?user=me&password=&ssl=1"),
        ("storage=postgresql://me@db/lora", "storage=postgresql://me@db/lora"),
        ("postgresql://me:${oc.env:SECRET}@db/lora", "postgresql://me:${oc.env:SECRET}@db/lora"),
        ("postgresql://${oc.env:ME}:secret@db/lora", "postgresql://${oc.env:ME}@db/lora"),
        ("postgresql://${oc.env:ME}@db/lora", "postgresql://${oc.env:ME}@db/lora"),
        ("${oc.env:DB,postgresql://me:secret@db/lora}", "${oc.env:DB,postgresql://me@db/lora}"),
        ("https://secret@tracking.example/a", "https://tracking.example/a"),
        ("API request to http://me:secret@h:5000/api failed", "API request to http://h:5000/api failed"),
        ("http://127.0.0.1:5000/team@work", "http://127.0.0.1:5000/team@work"),
        ("sqlite:///a@b:c/optuna.db", "sqlite:///a@b:c/optuna.db"),
    ],
)
def test_addresses(text: str, shown: str) -> None:
    assert public(text) == shown and first_line(OSError(text)) == shown


def test_a_search_writes_none(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to its folder nor to MLflow, whether they were typed or come from the environment."""
    place, secret = Place(tmp_path), "not-for-others"
    known = database.replace("tester@", f"tester:{secret}@")
    monkeypatch.setenv("LORA_DB", known)
    argv = ["n_trials=1", "search/pruner=none", "trainer.slots=1"]
    assert quick(place, *argv, "storage=${oc.env:LORA_DB}") == 0
    assert "'storage=${oc.env:LORA_DB}'" in place.record().resume_command
    assert quick(place, *argv, f"storage={known}", "study=t") == 0
    assert f"storage={database}" in place.record("t").command and place.record("t").storage == database
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"study.json", "mlflow.db", "config.yaml"} <= {file.name for file in files}
    assert [file for file in files if secret.encode() in file.read_bytes()] == []


def test_nor_does_what_is_said_of_a_wrong_one() -> None:
    with pytest.raises(UserError, match="expected a URL") as error:
        make_job(["model=tiny", "storage=postgres://me:secret@db/lora"])
    assert "secret" not in str(error.value)
