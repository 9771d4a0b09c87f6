"""Room on the disk is looked for before it is needed, and a full one is known by its error."""

import errno
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_core import disk


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with room for 1000 bytes."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))


def test_there_must_be_room_for_all_of_it(tmp_path: Path, free: None) -> None:
    disk.check_room(tmp_path / "not" / "there", 950)
    with pytest.raises(OSError, match="are needed") as caught:
        disk.check_room(tmp_path / "not" / "there", 1000)
    assert disk.is_full(caught.value)
    assert str(tmp_path) in disk.told(caught.value)


def test_what_says_that_a_disk_is_full() -> None:
    assert disk.is_full(OSError(errno.ENOSPC, "No space left on device"))
    too_large = OSError(errno.EFBIG, "File too large")
    assert disk.is_full(too_large) and "File too large" in disk.told(too_large)
    assert disk.is_full(RuntimeError("[write] Unable to write 2951520 bytes to file."))
    for reason in ("No space left on device (os error 28)", "File too large (os error 27)"):
        assert disk.is_full(Exception(f"Error while serializing: I/O error: {reason}"))
    assert not disk.is_full(OSError(errno.EACCES, "Permission denied"))
    assert not disk.is_full(RuntimeError("something else"))


def test_what_another_machine_has_on_a_network_drive_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes have numbers of their own."""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    monkeypatch.setattr(disk.os, "getpid", lambda: int(gone.stdout))
    folder = disk.scratch(tmp_path, "there-")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "another")
        disk.remove_orphans(tmp_path, "there-")
        assert Path(folder.name).exists()
    disk.remove_orphans(tmp_path, "there-")
    assert not Path(folder.name).exists()
