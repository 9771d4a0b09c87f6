"""What may happen to a search that runs overnight, done to it on purpose.

`FAULTS=30 uv run pytest -m faults tests/sweeps` kills that often, and ends with a table of what was survived.
"""

import os
import random
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sweeps.cli import main
from tests.fault_table import Row, tried
from tests.sweeps.conftest import ROOT
from tests.sweeps.faults import Disturbed, assert_whole
from tests.sweeps.helpers import Place
from tests.sweeps.test_search import alive, wait_for

pytestmark = pytest.mark.faults

TIMES = int(os.environ.get("FAULTS", 10))
MOMENT = 6.0  # seconds in which a process loads everything and trains a few trials


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[tuple]]:
    """The results of so many trials, never disturbed."""
    place = Place(tmp_path_factory.mktemp("calm"))
    done = 0

    def results(total: int) -> list[tuple]:
        nonlocal done
        if done < total:
            assert main(Disturbed(place, Row(), total).arguments) == 0
            done = total
        return place.results()[: 2 + total]

    return results


def test_the_training_process_is_killed(place: Place, calm: Callable[[int], list[tuple]]) -> None:
    """At any moment, but at most twice before a trial ends: the third time that trial would be given up."""
    chance = random.Random(0)
    with tried("kill -9 of the training process", TIMES) as row:
        search, killed, since, ended = Disturbed(place, row), 0, 0, 0
        search.start()
        wait_for(lambda: search.look() != [] or search.process.poll() is not None)
        while killed < TIMES:
            if not search.wait(chance.uniform(0, MOMENT)):
                assert search.process.returncode == 0, search.over()
                search.total += 6  # it was faster
                search.start()
                wait_for(lambda: search.look() != [] or search.process.poll() is not None)
            worker = search.worker()
            since, ended = (since if len(search.ended) == ended else 0), len(search.ended)
            if worker is None or since == 2:
                continue
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
                killed, since = killed + 1, since + 1
                wait_for(lambda worker=worker: not alive(worker))  # type: ignore[misc]
        search.over()
        assert search.process.returncode == 0
        assert_whole(place, search.total)
        assert place.results() == calm(search.total)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_search_is_ended(place: Place, calm: Callable[[int], list[tuple]], number: signal.Signals) -> None:
    times = TIMES if number == signal.SIGKILL else max(1, TIMES // 3)
    chance, name = random.Random(number), "kill -9" if number == signal.SIGKILL else number.name
    with tried(f"{name} of the search", times) as row:
        search, sent = Disturbed(place, row), 0
        while sent < times:
            search.start()
            if search.wait(chance.uniform(0, 2 * MOMENT)):
                worker = search.worker()
                search.process.send_signal(number)
                sent += 1
                search.over()
                wait_for(lambda worker=worker: worker is None or not alive(worker))  # type: ignore[misc]
            else:
                assert search.process.returncode == 0, search.over()
                search.total += 4
        search.finish()
        assert place.results() == calm(search.total)


def test_a_frozen_search_goes_on(place: Place, calm: Callable[[int], list[tuple]]) -> None:
    """As on a laptop that sleeps; meanwhile the study is still its own."""
    with tried("SIGSTOP for 40 s, then SIGCONT") as row:
        search = Disturbed(place, row)
        search.start()
        wait_for(lambda: len(search.look()) > 0 and "trial-0001" in str(search.look()))
        processes = [search.process.pid, search.worker() or 0]
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        time.sleep(20)
        other = subprocess.run(
            [sys.executable, "-m", "sweeps", *search.arguments], cwd=place.root, capture_output=True, text=True
        )
        # It may be frozen while it holds MLflow's database too.
        refused = re.fullmatch(r".*(Another lora-sweep writes to|database is locked).*\n", other.stderr)
        assert other.returncode == 2 and refused, other.stderr
        time.sleep(20)
        # The training process first: should it have died meanwhile, the search takes note of that once it is awake,
        # and there is none by that number any more.
        for process in reversed(processes):
            os.kill(process, signal.SIGCONT)
        search.over()
        assert search.process.returncode == 0
        assert_whole(place, search.total)
        assert place.results() == calm(search.total)


def test_two_starts_at_once(place: Place, calm: Callable[[int], list[tuple]]) -> None:
    with tried("two starts of one study at once") as row:
        first, second = Disturbed(place, row), Disturbed(place, row)
        first.start()
        second.start()
        said = [search.over() for search in (first, second)]
        assert sorted(search.process.returncode for search in (first, second)) == [0, 2], said
        assert "Another lora-sweep writes to" in "".join(said)
        assert_whole(place, first.total)
        assert place.results() == calm(first.total)


def test_a_locked_database(place: Place, calm: Callable[[int], list[tuple]]) -> None:
    with tried("the study's database locked for 20 s") as row:
        search = Disturbed(place, row)
        search.start()
        wait_for(lambda: "trial-0000" in search.ended or not search.wait(0.1))
        with sqlite3.connect(place.root / "optuna.db", isolation_level=None) as database:
            database.execute("BEGIN IMMEDIATE")
            time.sleep(20)
            database.execute("ROLLBACK")
        search.over()
        assert search.process.returncode == 0
        assert_whole(place, search.total)
        assert place.results() == calm(search.total)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("full", ["outputs", "optuna.db"])
def test_a_full_disk(place: Place, small: Path, calm: Callable[[int], list[tuple]], full: str) -> None:
    """That of the trials, or that of the study's database. It ends, says why, and goes on once there is room."""
    (place.root / full).symlink_to(small / full)
    if full == "outputs":
        (small / full).mkdir()
    with tried(f"disk full while {'saving' if full == 'outputs' else 'telling'}") as row:
        search = Disturbed(place, row)
        search.start()
        wait_for(lambda: "trial-0000" in search.ended or not search.wait(0.1))
        fill(small / "ballast")
        said = search.over()
        assert search.process.returncode == 1
        assert "Resume with: lora-sweep search" in said and len(said.splitlines()) <= 3, said
        (small / "ballast").unlink()
        search.finish()
        assert place.results() == calm(search.total)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits another process")
def test_no_room_for_an_adapter(place: Place, calm: Callable[[int], list[tuple]]) -> None:
    """As on a full disk, for users who may not mount a small one: a limit on the size of a file."""
    with tried("no room for a file as large as an adapter") as row:
        search = Disturbed(place, row)
        search.start()
        wait_for(lambda: "trial-0000" in search.ended or not search.wait(0.1))
        worker = search.worker()
        assert worker is not None
        _, most = resource.prlimit(worker, resource.RLIMIT_FSIZE)
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (8192, most))
        said = search.over()
        assert search.process.returncode == 1
        assert "no space left" in said and "Resume with: lora-sweep search" in said and len(said.splitlines()) <= 3
        search.finish()
        assert place.results() == calm(search.total)


def fill(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    else:
        content[-9] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "bit-flipped"])
def test_a_damaged_checkpoint(place: Place, calm: Callable[[int], list[tuple]], how: str) -> None:
    with tried(f"checkpoint {how}") as row:
        search = Disturbed(place, row)
        search.start()
        wait_for(lambda: "trial-0001" in search.ended or not search.wait(0.1))
        search.process.send_signal(signal.SIGINT)
        search.over()
        checkpoints = list(place.folder().glob("trial-*/slot-*.safetensors"))
        assert checkpoints
        for file in checkpoints:
            damage(file, how)
        search.finish()
        assert place.results() == calm(search.total)


@pytest.mark.parametrize("how", ["truncated", "bit-flipped"])
def test_a_damaged_adapter(place: Place, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the winner's, and neither merged nor scored any more; all else of the study stands."""
    (place.data / "test.jsonl").write_text((place.data / "valid.jsonl").read_text())
    with tried(f"adapter {how}") as row:
        search = Disturbed(place, row, more=["fuse=true"])
        search.finish()
        best = min((trial for trial in place.trials() if trial.value), key=lambda trial: trial.value or 9)
        assert best.adapter is not None and "test_loss" in best.metrics
        damage(Path(best.adapter) / "adapters.safetensors", how)
        search.total += 1
        search.finish()
        assert any(each.startswith("Merging failed: ") and "has changed since" in each for each in place.record().notes)


@pytest.mark.parametrize("loss", ["nan", "inf", "-inf"])
def test_a_loss_that_is_none(
    place: Place, calm: Callable[[int], list[tuple]], strange: Callable[[str], None], loss: str
) -> None:
    """In every other trial, from its second evaluation on. Those fail, and no other is any different for it."""
    expected = calm(6)
    strange(loss)
    with tried(f"losses that are {loss}") as row:
        assert main(Disturbed(place, row).arguments) == 0
        assert_whole(place, 6)
        for trial in place.trials()[1::2]:
            assert (trial.state, trial.reason, trial.best_step) == ("failed", "diverged", 8)
            assert "final_val_loss" not in trial.metrics
        assert place.results()[2::2] == expected[2::2]


@pytest.fixture
def strange(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has the training process be `strange_losses.main(loss)`."""
    real = subprocess.Popen

    def arm(loss: str) -> None:
        def start(argv: list[str], **options: Any) -> Any:
            if argv[1:] == ["-m", "sweeps.worker"]:
                argv = [sys.executable, "-m", "tests.sweeps.strange_losses", loss]
                options["cwd"] = ROOT
            return real(argv, **options)

        monkeypatch.setattr(subprocess, "Popen", start)

    return arm


OPENING = """
import sys
from sweeps.preflight import opening
from sweeps.storage import open_storage
from sweeps.store import Store
storage, uri = sys.argv[1:]
with opening(storage, uri):
    open_storage(storage)
    Store(uri, "everybody")
"""


def test_eight_open_a_fresh_store(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("optuna", "mlflow")]
    with tried("a fresh store opened by 8 processes at once", 8):
        processes = [
            subprocess.Popen([sys.executable, "-c", OPENING, *urls], cwd=ROOT, stderr=subprocess.PIPE, text=True)
            for _ in range(8)
        ]
        said = [process.communicate(timeout=300)[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * 8, said
        with sqlite3.connect(tmp_path / "mlflow.db") as database:
            assert database.execute("SELECT count(*) FROM experiments WHERE name = 'everybody'").fetchone() == (1,)
