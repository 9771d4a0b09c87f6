"""The recorded study of `helpers`, written to a temporary folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.reports.helpers import write_study

StudyWriter = Callable[..., Path]


@pytest.fixture
def make_study(tmp_path: Path) -> StudyWriter:
    """Writes a study folder under a temporary `outputs/`."""

    def make(name: str = "demo", **more: Any) -> Path:
        return write_study(tmp_path / "outputs", name, **more)

    return make


@pytest.fixture
def study_folder(make_study: StudyWriter) -> Path:
    return make_study()
