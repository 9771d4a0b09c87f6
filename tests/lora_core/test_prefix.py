"""Where prefixes are kept: memory, then disk, then nowhere; always the same numbers."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from lora_core import prefix
from lora_core.batches import make_batches
from lora_core.models import load
from lora_core.prefix import NAME, PrefixCache
from lora_core.split import Split
from tests.lora_core.helpers import demo


@pytest.fixture(scope="module")
def split() -> Split:
    return Split(load("builtin:tiny").model)


@pytest.fixture(autouse=True)
def temporary(monkeypatch, tmp_path) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


BATCHES = make_batches(demo().train[:8], 4, 8)


def counted(split: Split, monkeypatch) -> list[int]:
    """The boundaries of the prefixes that were computed."""
    seen: list[int] = []
    plain = split.prefix

    def spy(tokens, boundary, start=0, hidden=None):
        seen.append(boundary)
        return plain(tokens, boundary, start, hidden)

    monkeypatch.setattr(split, "prefix", spy)
    return seen


@pytest.mark.parametrize(("budget", "disk_budget", "computed"), [(1 << 30, 0, 2), (0, 1 << 30, 2), (0, 0, 4)])
def test_each_is_computed_once_where_there_is_room(split, monkeypatch, budget, disk_budget, computed):
    expected = [split.prefix(mx.array(batch.inputs), 2) for batch in BATCHES]
    seen = counted(split, monkeypatch)
    cache = PrefixCache(split, budget, disk_budget)
    for _ in range(2):
        for batch, right in zip(BATCHES, expected, strict=True):
            assert mx.array_equal(cache.hidden([batch], "train", 2), right)
    assert seen == [2] * computed


def test_those_that_come_next_are_made_in_the_same_pass_where_there_is_room(split, monkeypatch):
    batches = make_batches(demo().train[:12], 4, 64)
    assert len({batch.length for batch in batches}) == 1
    expected = [split.prefix(mx.array(batch.inputs), 2) for batch in batches]
    size = expected[0].nbytes
    for room, computed in ((4 * size, 2), (3 * size, 2), (2 * size, 3)):
        with monkeypatch.context() as patched:
            seen = counted(split, patched)
            cache = PrefixCache(split, room, 0)
            cache.tokens_at_once = 1024
            found = [cache.hidden(batches[i:], "train", 2) for i in range(3)]
        assert len(seen) == computed, room
        assert all(mx.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
        assert cache.used <= room


def test_budgets_are_kept(split, temporary):
    size = split.prefix(mx.array(BATCHES[0].inputs), 2).nbytes
    cache = PrefixCache(split, size, size)
    for key in range(4):
        cache.hidden(BATCHES[:1], key, 2)
    files = list(temporary.rglob("*.safetensors"))
    assert (cache.used, cache.disk_used, len(files)) == (size, size, 1)


def test_a_deeper_boundary_starts_from_a_lower_one(split, monkeypatch):
    cache = PrefixCache(split, 1 << 30)
    lower = cache.hidden(BATCHES[:1], "train", 1)
    starts = []
    plain = split.prefix
    monkeypatch.setattr(split, "prefix", lambda *given: starts.append(given[2:]) or plain(*given))
    found = cache.hidden(BATCHES[:1], "train", 3)
    assert len(starts) == 1 and starts[0][0] == 1 and mx.array_equal(starts[0][1], lower)
    assert mx.array_equal(found, plain(mx.array(BATCHES[0].inputs), 3))


def test_the_files_go_with_the_cache(split, temporary):
    cache = PrefixCache(split, 0)
    cache.hidden(BATCHES[:1], "train", 2)
    assert list(temporary.iterdir())
    del cache
    assert not list(temporary.iterdir())


def test_a_file_that_somebody_removed_is_made_again(split, temporary):
    cache = PrefixCache(split, 0)
    expected = cache.hidden(BATCHES[:1], "train", 2)
    mx.eval(expected)
    for file in temporary.rglob("*.safetensors"):
        file.unlink()
    assert mx.array_equal(cache.hidden(BATCHES[:1], "train", 2), expected)
    assert len([*temporary.rglob("*.safetensors")]) == 1


def test_a_full_disk_stops_the_writing_only(split, monkeypatch, temporary):
    def full(*_):
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(mx, "save_safetensors", full)
    cache = PrefixCache(split, 0)
    expected = split.prefix(mx.array(BATCHES[0].inputs), 2)
    assert mx.array_equal(cache.hidden(BATCHES[:1], "train", 2), expected)
    assert cache.disk_budget == 0 and not list(temporary.rglob("*.safetensors"))


def test_folders_of_processes_that_are_gone_are_removed(split, temporary):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = [f"{NAME}{socket.gethostname()}-{process}-x" for process in (gone.pid, os.getpid())]
    for name in (*names, "something-else"):
        (temporary / name).mkdir()
    PrefixCache(split, 1 << 30)
    assert {path.name for path in temporary.iterdir()} == {names[1], "something-else"}


def test_a_small_disk_bounds_the_budget(split, monkeypatch):
    monkeypatch.setattr(prefix.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    cache = PrefixCache(split, 0)
    cache.hidden(BATCHES[:1], "train", 2)
    assert (cache.disk_budget, cache.disk_used) == (50, 0)
