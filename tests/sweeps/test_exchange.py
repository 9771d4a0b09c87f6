"""What carries a trial from one machine's folder to another's, with MLflow's store in a file instead of a server."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_core import disk
from lora_core.errors import UserError
from lora_core.records import (
    CHECKPOINT,
    StudyRecord,
    TrialRecord,
    adapter_damage,
    append_metrics,
    load_metrics,
    load_trial,
    remove_checkpoint,
    save_trial,
    saved_step,
)
from lora_core.trial import TrialSpec
from sweeps import exchange, interrupts, parcels, trials
from sweeps.connect import FAILURES
from sweeps.exchange import Exchange, SharedFolder
from sweeps.parcels import ON_ITS_WAY, Parcels
from sweeps.store import Store
from sweeps.trials import Trials
from sweeps.trouble import Trouble
from tests.sweeps.helpers import empty_store
from tests.sweeps.test_search import wait_for

NAME = "trial-0003"
# Hands over a trial, and is killed when all of it is packed.
KILLED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from sweeps.exchange import Exchange
from sweeps.parcels import Parcels

store = SimpleNamespace(add_file=lambda *given: os.kill(os.getpid(), signal.SIGKILL))
Exchange(Parcels(store, "run", Path(sys.argv[1]), print))._publish(sys.argv[2])
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Exchange]:
    """The exchange of a machine by that name; the lines that it says are its `said`."""
    monkeypatch.setattr(parcels, "check_server", lambda uri: None)
    (tmp_path / "mlflow.db").write_bytes(empty_store())
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", "tests")
    run_id = store.create_run("s", {}, {})

    def make(name: str) -> Exchange:
        said: list[str] = []
        there = Exchange(Parcels(store, run_id, tmp_path / name, said.append))
        there.said = said  # type: ignore[attr-defined]
        return there

    return make


def trained(folder: Path, state: str = "complete", value: float = 1.5) -> TrialRecord:
    """What a trial leaves."""
    place = folder / NAME
    (place / "adapters").mkdir(parents=True)
    (place / "adapters" / "adapters.safetensors").write_bytes(b"weights")
    append_metrics(place, {"step": 0, "val_loss": value})
    sha256 = hashlib.sha256(b"weights").hexdigest()
    record = TrialRecord(NAME, "trial", state, 3, metrics={"best_val_loss": value}, adapter_sha256=sha256)
    record.adapter = str(place / "adapters")
    save_trial(place, record)
    return record


def test_a_server_that_leaves_files_to_its_clients(machine: Callable[[str], Exchange]) -> None:
    """As with a store in a file, they would stay on the disk of the machine that has them."""
    study, record = SimpleNamespace(crew=SimpleNamespace(leads=True)), StudyRecord("s")
    with pytest.raises(UserError, match="leaves files to its clients") as refused:
        machine("here").open(study, record)  # type: ignore[arg-type]
    assert "mlflow server --artifacts-destination" in str(refused.value)


def test_another_server(machine: Callable[[str], Exchange], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "artifact_location", "mlflow-artifacts:/1")
    joins, record, here = SimpleNamespace(crew=SimpleNamespace(leads=False)), StudyRecord("s"), machine("here")
    here.open(joins, record)  # type: ignore[arg-type]
    assert record.tracking == {"run_id": here.parcels.run_id}
    here.parcels.run_id = "0" * 32
    with pytest.raises(UserError, match="does not know study=s"):
        here.open(joins, record)  # type: ignore[arg-type]


def test_what_a_killed_process_has_left(machine: Callable[[str], Exchange], monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one removes it, and nothing of a worker of this machine that is there."""
    here = machine("here")
    trained(here.folder)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(here.folder), NAME])
    (left,) = here.folder.glob(".*")
    assert killed.returncode == -signal.SIGKILL and (left / f"{NAME}.zip").stat().st_size
    with disk.scratch(here.folder, ON_ITS_WAY) as used:
        monkeypatch.setattr(Store, "artifact_location", "mlflow-artifacts:/1")
        joins = SimpleNamespace(crew=SimpleNamespace(leads=False))
        here.open(joins, StudyRecord("s"))  # type: ignore[arg-type]
        assert {path.name for path in here.folder.iterdir()} == {NAME, Path(used).name}


def test_what_has_not_ended_yet_in_a_shared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The drive may show for a while what was there before the trial has ended."""
    shared = SharedFolder(tmp_path)
    assert not shared.fetch(NAME)
    trained(tmp_path, "running")
    assert not shared.fetch(NAME)
    shared.check()
    assert not shared.gather([NAME]), "who takes over the lead sees all first"
    monkeypatch.setattr(exchange, "PATIENCE", 0.0)
    with pytest.raises(Trouble, match=f"{NAME} cannot be seen"):
        shared.check()
    shutil.rmtree(tmp_path / NAME)
    trained(tmp_path)
    shared.check()
    assert shared.fetch(NAME) and shared.gather([NAME])


def test_a_trial_gets_to_another_machine(machine: Callable[[str], Exchange]) -> None:
    here, there = machine("here"), machine("there")
    sent = trained(here.folder)
    assert not there.fetch(NAME), "nothing was handed over yet"
    there.parcels.problem = None
    assert here.publish(NAME) and there.fetch(NAME)
    place = there.folder / NAME
    got = load_trial(place)
    assert got.adapter == str(place / "adapters") and adapter_damage(got, place / "adapters") is None
    assert (got.value, got.adapter_sha256) == (sent.value, sent.adapter_sha256)
    assert load_metrics(place) == load_metrics(here.folder / NAME)
    assert [path.name for path in there.folder.iterdir()] == [NAME]


def test_what_is_here_and_has_ended_stays(machine: Callable[[str], Exchange]) -> None:
    here, there = machine("here"), machine("there")
    trained(here.folder, value=1.0)
    here.publish(NAME)
    trained(there.folder, value=2.0)
    assert there.fetch(NAME) and load_trial(there.folder / NAME).value == 2.0


def test_what_is_here_and_was_left_halfway_is_replaced(machine: Callable[[str], Exchange]) -> None:
    here, there = machine("here"), machine("there")
    trained(here.folder, value=1.0)
    here.publish(NAME)
    trained(there.folder, "running", value=2.0)
    (there.folder / NAME / "slot.json").touch()
    assert there.fetch(NAME) and load_trial(there.folder / NAME).value == 1.0
    assert not (there.folder / NAME / "slot.json").exists()


def test_a_torn_file_is_not_taken(machine: Callable[[str], Exchange], tmp_path: Path) -> None:
    here, there = machine("here"), machine("there")
    trained(here.folder)
    here.publish(NAME)
    (file,) = tmp_path.rglob(f"{NAME}.zip")
    file.write_bytes(file.read_bytes()[:-40])
    assert not there.fetch(NAME) and not (there.folder / NAME).exists()


def test_an_adapter_that_goes_while_it_is_packed(
    machine: Callable[[str], Exchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker of the machine has found it not to be among those that are kept."""
    here, there = machine("here"), machine("there")
    record, real = trained(here.folder), parcels.ZipFile.write

    def write(packed: parcels.ZipFile, path: Path, *given: object) -> None:
        if (adapter := here.folder / NAME / "adapters").exists():
            shutil.rmtree(adapter)
            record.adapter = None
            save_trial(here.folder / NAME, record)
        real(packed, path, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(parcels.ZipFile, "write", write)
    assert here.publish(NAME) and there.fetch(NAME)
    assert load_trial(there.folder / NAME).adapter is None and not (there.folder / NAME / "adapters").exists()


@pytest.mark.parametrize(("workers", "stays"), [(1, False), (2, True)])
def test_what_was_taken_over(machine: Callable[[str], Exchange], workers: int, stays: bool) -> None:
    """Another worker of this machine goes on with it where it is."""
    here = machine("here")
    here.workers = workers
    trained(here.folder, "running")
    here.discard(NAME)
    assert (here.folder / NAME).exists() == stays


def test_all_that_was_handed_over(machine: Callable[[str], Exchange]) -> None:
    here, there = machine("here"), machine("there")
    assert there.fetch_all([])
    trained(here.folder)
    here.publish(NAME)
    assert there.fetch_all([]) and load_trial(there.folder / NAME).state == "complete"
    assert not there.fetch_all(["trial-0004"]), "that one is nowhere"


def test_what_ends_while_all_is_fetched_is_fetched_too(
    machine: Callable[[str], Exchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "MOMENT", 0.0)
    here, leads = machine("here"), machine("leads")
    assert not leads.gather([])
    wait_for(lambda: leads.is_idle)
    trained(here.folder)
    wait_for(lambda: here.publish(NAME))
    assert not leads.gather([NAME]), "what is done was asked for before"
    wait_for(lambda: leads.gather([NAME]))
    assert load_trial(leads.folder / NAME).state == "complete"


def test_a_server_that_is_away(machine: Callable[[str], Exchange], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked rarely, which is said once, and given up after a while."""
    here, asked = machine("here"), []
    trained(here.folder)

    def away(uri: str) -> None:
        asked.append(uri)
        raise FAILURES[-1]("refused")

    monkeypatch.setattr(parcels, "check_server", away)
    assert not here.publish(NAME) and not here.publish(NAME)
    assert len(asked) == 1
    here.check()
    monkeypatch.setattr(parcels, "PAUSE", 0.0)
    assert not here.publish(NAME)
    monkeypatch.setattr(exchange, "PATIENCE", 0.0)
    with pytest.raises(Trouble, match="refused"):
        here.check()
    monkeypatch.setattr(parcels, "check_server", lambda uri: None)
    wait_for(lambda: here.publish(NAME))
    here.check()
    first, second = here.said  # type: ignore[attr-defined]
    assert "does not answer (refused)" in first and "answers again" in second


def test_slow_files_hold_up_nobody(machine: Callable[[str], Exchange], monkeypatch: pytest.MonkeyPatch) -> None:
    """They go their way in a thread of their own; whoever asks again learns that they have got there."""
    monkeypatch.setattr(parcels, "MOMENT", 0.01)
    here, there, leads, slow = machine("here"), machine("there"), machine("leads"), threading.Event()
    trained(here.folder)
    for name in ("add_file", "fetch_file"):
        real = getattr(Store, name)
        monkeypatch.setattr(Store, name, lambda *given, real=real: slow.wait(10) and real(*given))
    for act in (here.publish, there.fetch, lambda name: leads.gather([name])):
        slow.clear()
        began = time.monotonic()
        assert not act(NAME) and not act(NAME)
        assert time.monotonic() - began < 5
        slow.set()
        wait_for(lambda act=act: act(NAME))  # type: ignore[misc]
    assert load_trial(there.folder / NAME).state == load_trial(leads.folder / NAME).state == "complete"


def test_what_is_dropped_while_it_is_on_its_way(machine: Callable[[str], Exchange]) -> None:
    """What is handed over last is what is left."""
    here, there = machine("here"), machine("there")
    record = trained(here.folder)
    assert here.publish(NAME)
    shutil.rmtree(str(record.adapter))
    record.adapter = None
    save_trial(here.folder / NAME, record)
    here.publish_again(NAME)
    wait_for(lambda: here.is_idle)
    assert there.fetch(NAME) and load_trial(there.folder / NAME).adapter is None


def test_what_is_on_its_way_holds_up_nobody_who_gives_it_up(
    machine: Callable[[str], Exchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked before another machine had it answers nothing later."""
    monkeypatch.setattr(parcels, "MOMENT", 0.0)
    here, there, slow, real = machine("here"), machine("there"), threading.Event(), Store.add_file
    wait_for(lambda: here.bring(NAME))
    here.bring(NAME)
    wait_for(lambda: here.is_idle)
    monkeypatch.setattr(Store, "add_file", lambda *given: slow.wait(10) and real(*given))
    trained(here.folder)
    assert not here.publish(NAME)
    began = time.monotonic()
    here.discard(NAME)
    assert time.monotonic() - began < 5
    slow.set()
    saved(there.folder, 20)
    carried(there, [NAME])
    wait_for(lambda: here.bring(NAME))
    assert saved_step(here.folder / NAME) == 20


def test_a_trial_that_is_run_anew_is_handed_over_anew(
    machine: Callable[[str], Exchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it was on its way before another machine took it says nothing."""
    monkeypatch.setattr(parcels, "MOMENT", 0.0)
    here, there = machine("here"), machine("there")
    trained(here.folder, value=2.5)
    here.publish(NAME)
    here.discard(NAME)
    trained(here.folder, value=1.5)
    wait_for(lambda: here.publish(NAME))
    wait_for(lambda: there.fetch(NAME))
    assert load_trial(there.folder / NAME).value == 1.5


def saved(folder: Path, step: int, name: str = NAME) -> None:
    """What a trial that is running has on disk at that step."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    remove_checkpoint(place)
    (place / f"slot-{step}.safetensors").write_bytes(str(step).encode())
    (place / CHECKPOINT).write_text(json.dumps({"file": f"slot-{step}.safetensors", "host": {"step": step}}))
    append_metrics(place, {"step": step, "val_loss": 1.0})
    save_trial(place, TrialRecord(name, "trial", "running", int(name[-4:])))


def carried(here: Exchange, names: list[str]) -> None:
    here.carry(names, lambda: True)
    wait_for(lambda: here.is_idle)


def arrays(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in folder.glob("slot-*")]


def test_a_checkpoint_gets_to_another_machine(machine: Callable[[str], Exchange]) -> None:
    """The latest, and it alone; where there is one as late, none."""
    here, there = machine("here"), machine("there")
    for step in (10, 20):
        saved(here.folder, step)
        carried(here, [NAME])
        assert here.parcels.there(f"checkpoints/{NAME}") == [f"checkpoints/{NAME}/{step}.zip"]
    assert there.bring(NAME)
    assert saved_step(there.folder / NAME) == 20 and arrays(there.folder / NAME) == [b"20"]
    assert [row["step"] for row in load_metrics(there.folder / NAME)] == [10, 20]
    assert load_trial(there.folder / NAME).state == "running"
    for step, then in ((15, b"20"), (20, b"mine"), (25, b"mine")):
        saved(there.folder, step)
        (there.folder / NAME / f"slot-{step}.safetensors").write_bytes(b"mine")
        assert there.bring(NAME) and arrays(there.folder / NAME) == [then]


def test_a_trial_that_was_not_begun_or_has_ended_needs_none(machine: Callable[[str], Exchange]) -> None:
    here, there = machine("here"), machine("there")
    assert there.bring(NAME) and not (there.folder / NAME).exists()
    saved(here.folder, 10)
    carried(here, [NAME])
    trained(there.folder)
    assert there.bring(NAME) and load_trial(there.folder / NAME).state == "complete"


def test_a_checkpoint_goes_when_its_trial_ends(machine: Callable[[str], Exchange]) -> None:
    here, there = machine("here"), machine("there")
    saved(here.folder, 10)
    carried(here, [NAME])
    shutil.rmtree(here.folder / NAME)
    trained(here.folder)
    wait_for(lambda: here.publish(NAME))
    assert there.bring(NAME) and saved_step(there.folder / NAME) == 10, "the study does not know yet that it has ended"
    here.release(NAME)
    wait_for(lambda: here.is_idle)
    assert here.parcels.there("checkpoints") == [] and there.fetch(NAME)


def test_a_checkpoint_that_is_half_there_is_worth_nothing(
    machine: Callable[[str], Exchange], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the one before is there until the next one is."""
    here, there = machine("here"), machine("there")
    saved(here.folder, 10)
    carried(here, [NAME])

    def half(self: Store, run_id: str, file: Path, folder: str) -> None:
        (tmp_path / file.name).write_bytes(file.read_bytes()[:-30])
        real(self, run_id, tmp_path / file.name, folder)
        raise FAILURES[-1]("the machine is gone")

    real = Store.add_file
    monkeypatch.setattr(Store, "add_file", half)
    saved(here.folder, 20)
    carried(here, [NAME])
    assert len(here.parcels.there(f"checkpoints/{NAME}")) == 2
    assert there.bring(NAME) and saved_step(there.folder / NAME) == 10


def test_a_trial_that_ends_while_its_checkpoint_is_packed(machine: Callable[[str], Exchange]) -> None:
    """With what lies beside the checkpoint then, it would be taken for one that has ended."""
    here = machine("here")
    saved(here.folder, 10)
    save_trial(here.folder / NAME, TrialRecord(NAME, "trial", "complete", 3))
    carried(here, [NAME])
    saved(here.folder, 20)
    (here.folder / NAME / "slot-20.safetensors").unlink()
    carried(here, [NAME])
    assert here.parcels.there("checkpoints") == [] and here.problem is None


def test_checkpoints_hold_up_nothing_else(machine: Callable[[str], Exchange], monkeypatch: pytest.MonkeyPatch) -> None:
    """One is on its way at a time, of the trial that has waited for longest. What ends meanwhile leaves none there."""
    here, slow, added = machine("here"), threading.Event(), []
    names, real = ["trial-0004", NAME], Store.add_file

    def add(self: Store, run_id: str, file: Path, folder: str) -> None:
        added.append(folder)
        if folder.startswith("checkpoints"):
            slow.wait(10)
        real(self, run_id, file, folder)

    monkeypatch.setattr(Store, "add_file", add)
    for step in (10, 20):
        for name in names:
            saved(here.folder, step, name)
        for _ in range(3):
            here.carry(names, lambda: True)
        if step == 20:
            wait_for(lambda: len(added) == 2)
            shutil.rmtree(here.folder / NAME)
            trained(here.folder)
            wait_for(lambda: here.publish(NAME))
            here.release(NAME)
        slow.set()
        wait_for(lambda: here.is_idle)
        slow.clear()
    assert added == ["checkpoints/trial-0004", f"checkpoints/{NAME}", "trials"]
    assert here.parcels.there(f"checkpoints/{NAME}") == []


def test_who_leaves_hands_over_what_was_saved_last(machine: Callable[[str], Exchange]) -> None:
    """All of it that is not there yet."""
    names = [NAME, "trial-0004"]
    here, there = machine("here"), machine("there")
    for name in names:
        saved(here.folder, 10, name)
    carried(here, names)
    here.part(names)
    wait_for(lambda: here.is_idle)
    here.close()
    for name in names:
        wait_for(lambda name=name: there.bring(name))  # type: ignore[misc]
        assert saved_step(there.folder / name) == 10


@pytest.mark.parametrize(("takes", "is_told"), [(0.5, True), (20.0, False)])
def test_one_that_is_interrupted_hands_over_what_it_has(
    machine: Callable[[str], Exchange], monkeypatch: pytest.MonkeyPatch, takes: float, is_told: bool
) -> None:
    """If that takes seconds."""
    here, real, over, told = machine("here"), Store.add_file, threading.Event(), []
    monkeypatch.setattr(Store, "add_file", lambda *given: over.wait(takes) or real(*given))
    monkeypatch.setattr(trials, "PARTING", 3.0)
    study = SimpleNamespace(tell=lambda record: told.append(record.name))
    left = Trials(None, study, None, here.folder, here, None, None)  # type: ignore[arg-type]
    left._untold = [trained(here.folder)]
    saved(here.folder, 10, "trial-0004")
    left.running["trial-0004"] = TrialSpec("trial-0004", "trial", {}, "")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), interrupts.handled(), ExitStack() as after:
        after.callback(left.leave)
        os.kill(os.getpid(), signal.SIGINT)
        with interrupts.waiting():
            raise AssertionError
    assert time.monotonic() - began < 6
    there = here.parcels.there("trials"), here.parcels.there("checkpoints/trial-0004")
    assert there == (([f"trials/{NAME}.zip"], ["checkpoints/trial-0004/10.zip"]) if is_told else ([], []))
    assert told == [NAME] * is_told
    over.set()


def test_one_that_has_slept_hands_over_no_checkpoint(machine: Callable[[str], Exchange]) -> None:
    """Another machine may have gone on with the trial, and be further."""
    here, there = machine("here"), machine("there")
    saved(here.folder, 10)
    here.carry([NAME], lambda: False)
    assert here.is_idle and here.parcels.there("checkpoints") == []
    saved(there.folder, 20)
    carried(there, [NAME])
    carried(here, [NAME])
    assert here.parcels.there(f"checkpoints/{NAME}") == [f"checkpoints/{NAME}/20.zip"]
    here.finish()
    wait_for(lambda: here.is_idle)
    assert here.parcels.there("checkpoints") == []


def test_a_checkpoint_that_could_not_be_sent_is_sent_later(
    machine: Callable[[str], Exchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, real, faults = machine("here"), Store.add_file, [FAILURES[-1]("refused")]
    monkeypatch.setattr(parcels, "PAUSE", 0.0)

    def failing(*given: object) -> None:
        if faults:
            raise faults.pop()
        real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "add_file", failing)
    saved(here.folder, 10)
    carried(here, [NAME])
    assert here.problem == "refused"
    carried(here, [NAME])
    assert here.problem is None and len(here.parcels.there(f"checkpoints/{NAME}")) == 1
    faults.append(OSError(errno.ENOSPC, "no room"))
    saved(here.folder, 20)
    carried(here, [NAME])
    with pytest.raises(OSError, match="no room"):
        carried(here, [NAME])


def test_what_is_left_of_a_trial_of_another_machine_is_not_handed_over(
    machine: Callable[[str], Exchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its adapter was to be dropped everywhere, when the other one took it over."""
    here, there, slow, real = machine("here"), machine("there"), threading.Event(), Store.add_file
    monkeypatch.setattr(Store, "add_file", lambda *given: slow.wait(10) and real(*given))
    trained(here.folder)
    shutil.copytree(here.folder / NAME, here.folder / "trial-0004")
    assert not here.publish("trial-0004")
    here.publish_again(NAME)
    here.discard(NAME)
    slow.set()
    wait_for(lambda: here.is_idle)
    assert here.problem is None and not (here.folder / NAME).exists()
    assert here.parcels.there("trials") == ["trials/trial-0004.zip"]
    assert not there.fetch(NAME)


def test_a_server_that_is_away_holds_up_no_trial(
    machine: Callable[[str], Exchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins with what is here."""
    here = machine("here")

    def away(uri: str) -> None:
        raise FAILURES[-1]("refused")

    monkeypatch.setattr(parcels, "check_server", away)
    wait_for(lambda: here.bring(NAME))
    assert here.problem is not None


def test_a_checkpoint_that_is_fetched_waits_for_none_that_is_sent(
    machine: Callable[[str], Exchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there, slow, real = machine("here"), machine("there"), threading.Event(), Store.add_file
    saved(there.folder, 10)
    carried(there, [NAME])
    monkeypatch.setattr(Store, "add_file", lambda *given: slow.wait(10) and real(*given))
    saved(here.folder, 10, "trial-0004")
    here.carry(["trial-0004"], lambda: True)
    wait_for(lambda: here.bring(NAME))
    assert not here.is_idle and saved_step(here.folder / NAME) == 10
    slow.set()
