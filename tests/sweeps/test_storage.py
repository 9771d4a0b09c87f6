"""Databases that cannot be opened are refused in words."""

import sys
from pathlib import Path

import pytest

from lora_core.errors import UserError
from sweeps.storage import open_storage


def test_storages_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, however long it may be")
    for url in (f"sqlite:///{tmp_path}/no/such/optuna.db", f"sqlite:///{tmp_path}/text.db"):
        with pytest.raises(UserError, match="cannot be opened") as error:
            open_storage(url)
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError) as error:
        open_storage("postgresql://me:secret@127.0.0.1:9/optuna")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "words"), [("postgresql://h/optuna", "extra postgres"), ("mysql://h/optuna", "package (MySQLdb)")]
)
def test_a_driver_that_is_not_installed_is_named(url: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("psycopg", "psycopg2", "MySQLdb"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        open_storage(url)
    assert words in str(error.value) and ".." not in str(error.value)
