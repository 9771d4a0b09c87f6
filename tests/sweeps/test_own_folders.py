"""Machines that share a study but no folder: where the MLflow server that carries their trials is away, and more."""

import os
import signal
import time
from pathlib import Path
from zipfile import ZipFile

import pytest
from optuna.trial import TrialState

from lora_core.records import load_metrics, load_trials
from lora_core.trial import TrialSpec
from reports.study import load
from sweeps import exchange, parcels
from sweeps.cli import main
from sweeps.display import Display
from sweeps.exchange import Exchange
from sweeps.protocol import Go, Report
from sweeps.requests import STOPPED
from sweeps.trials import PARTING, Trials
from tests.fault_table import tried
from tests.sweeps.machines import EVERY, Apart, N, check
from tests.sweeps.test_machines import children, signal_to
from tests.sweeps.test_search import wait_for

COMPLETE, RUNNING = TrialState.COMPLETE, TrialState.RUNNING
pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread")]


def trained(folder: Path) -> int:
    """How many trials of the search have ended on one machine's disk."""
    return sum(trial.role == "trial" and trial.state != "running" for trial in load_trials(folder))


@tried("MLflow's server killed, and brought back, while it carries trials")
def test_the_server_is_killed_and_comes_back(apart: Apart, alone: list[tuple]) -> None:
    """Meanwhile all go on with their training, and the study is told of nothing that could not be had."""
    folders = [apart.place.folder(apart.folder(process)) for process in apart.start_two()]
    apart.server.kill()
    before = [trained(folder) for folder in folders]
    time.sleep(1)  # for what was handed over by then to be told
    told = len(apart.study.get_trials(states=(COMPLETE,)))
    wait_for(lambda: all(trained(folder) > count for folder, count in zip(folders, before, strict=True)))
    assert len(apart.study.get_trials(states=(COMPLETE,))) == told
    apart.server.start()
    said = apart.finish()
    assert all("MLflow does not answer" in out and "MLflow answers again" in out for out in said.values())
    # What MLflow's pages missed may not have been told to the end.
    assert main(["sync", "s", "--output-dir", str(apart.place.folder(apart.folder(apart.leads)).parent)]) == 0
    check(apart, alone)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_trial_goes_on_elsewhere_from_its_checkpoint(
    apart: Apart, alone: list[tuple], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Which has come there beside the training."""
    leads = apart.start(module="tests.sweeps.saving")
    files = apart.place.root / "artifacts"

    def steps() -> dict[str, int]:
        """How far the checkpoints of trials are that the server has."""
        found = sorted(
            (path.parent.name, int(path.stem)) for path in files.glob("*/*/artifacts/checkpoints/trial-*/*.zip")
        )
        return dict(found)

    wait_for(lambda: max(steps().values(), default=0) > EVERY)
    leads.send_signal(number)
    leads.wait()
    ((name, at),) = steps().items()
    again: list[tuple[str, int]] = []
    real = Trials._answer

    def answer(self: Trials, report: Report) -> Go:
        again.extend((event.name, event.row["step"]) for event in report.evaluated if event.again)
        return real(self, report)

    monkeypatch.setattr(Trials, "_answer", answer)
    with tried(f"{'kill -9' if number == signal.SIGKILL else 'SIGTERM'} of a machine with a folder of its own"):
        assert main(apart.arguments()) == 0
        last, step = max(again)  # what was evaluated before the checkpoint, or before one that came after the kill
        assert last == name and step >= (at - 1) // EVERY * EVERY > 0
        assert apart.place.results("machine1/s") == alone
        assert not steps(), "they go when a trial ends"


@pytest.mark.parametrize("method", ["add_file", "fetch_file"])
def test_a_server_that_hangs_holds_up_no_end(apart: Apart, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """While a checkpoint is on its way; others can have the trials of a machine only once that is gone."""
    server, more = apart.server.process.pid, ["trainer.iters=300"]
    if method == "fetch_file":
        before = apart.start(*more, module="tests.sweeps.saving")
        wait_for(lambda: [*(apart.place.root / "artifacts").glob("*/*/artifacts/checkpoints/*/*.zip")])
        before.kill()
    monkeypatch.setenv("STOPPED", str(server))
    monkeypatch.setenv("STOPPED_AT", method)
    machine = apart.start(*more, module="tests.sweeps.saving")
    try:
        wait_for(lambda: Path(f"/proc/{server}/stat").read_text().split()[2] == "T")
        machine.send_signal(signal.SIGTERM)
        began = time.monotonic()
        machine.wait()
        assert time.monotonic() - began < PARTING + 30, "seconds to save the trials, and to give up telling MLflow"
    finally:
        os.killpg(server, signal.SIGCONT)


def test_the_default_settings_are_trained_by_who_leads_last(apart: Apart) -> None:
    """Also if no trial is left by then."""
    more = ("n_trials=1", "trainer.iters=600")
    leads = apart.start(*more)
    folder = apart.place.folder(apart.folder(leads))
    wait_for((folder / "default" / "trial.json").exists)
    trains = [int(child) for child in children(leads)]
    for process in trains:
        signal_to(process, signal.SIGSTOP)
    joins = apart.start(*more)
    there = apart.place.folder(apart.folder(joins))
    wait_for(lambda: any(row["step"] > 560 for row in load_metrics(there / "trial-0000")))
    leads.kill()
    for process in trains:
        signal_to(process, signal.SIGKILL)
    (out,) = apart.finish(leads).values()
    assert "This one leads it now" in out
    assert {t.name for t in load_trials(there) if t.state == "complete"} == {"base", "default", "trial-0000"}


def test_a_slow_server_holds_up_no_training(apart: Apart, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a file is on its way, the slot that has become free takes its next trial."""
    under_way, started = [], []
    carry, start = exchange._whole, Display.started

    def carried(folder: Path) -> dict[str, Path | str]:
        under_way.append(folder.name)
        time.sleep(3)
        under_way.clear()
        return carry(folder)

    def noted(self: Display, spec: TrialSpec) -> None:
        started.append([*under_way])
        start(self, spec)

    monkeypatch.setattr(exchange, "_whole", carried)
    monkeypatch.setattr(Display, "started", noted)
    assert main(apart.arguments("n_trials=3")) == 0
    assert any(started), started
    assert len(list((apart.place.root / "artifacts").rglob("trial-*.zip"))) == 3


def test_who_takes_over_the_lead_goes_on_training(
    apart: Apart, alone: list[tuple], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While what others have trained comes to its folder."""
    leads = apart.start()
    wait_for(lambda: apart.owners() and apart.study.get_trials(states=(COMPLETE,)))
    fetch, evaluated = Exchange._fetch, Display.evaluated
    under_way, trained = [], []

    def slow(self: Exchange, name: str) -> None:
        under_way.append(name)
        time.sleep(2)
        fetch(self, name)
        under_way.clear()

    def noted(self: Display, trial: str, row: dict[str, float]) -> None:
        leads.kill()
        trained.extend(under_way)
        evaluated(self, trial, row)

    monkeypatch.setattr(Exchange, "_fetch", slow)
    monkeypatch.setattr(Display, "evaluated", noted)
    assert main(apart.arguments()) == 0
    assert {"base", "default"} & {*trained}, trained
    assert "This one leads it now" in capsys.readouterr().out
    assert apart.place.results("machine1/s") == alone


def test_the_server_stays_away(
    apart: Apart,
    alone: list[tuple],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It ends in words and with another exit code, and the same command hands over what lies on the disk."""
    real = Display.evaluated

    def evaluated(self: Display, trial: str, row: dict[str, float]) -> None:
        real(self, trial, row)
        if trial == "trial-0001" and apart.server.answers():
            apart.server.kill()

    monkeypatch.setattr(Display, "evaluated", evaluated)
    monkeypatch.setattr(exchange, "PATIENCE", 3.0)
    monkeypatch.setattr(parcels, "PAUSE", 1.0)
    command = apart.arguments()
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "MLflow has not answered for" in captured.err and "Resume with:" in captured.err
    assert len(captured.err.splitlines()) <= 3
    ended = {trial.name: trial.ended for trial in apart.place.trials("machine0/s")}
    assert len(ended) == N and len(apart.study.get_trials(states=(RUNNING,))) == N - 1

    monkeypatch.undo()
    apart.server.start()
    assert main(command) == 0
    assert {trial.name: trial.ended for trial in apart.place.trials("machine0/s")} == ended
    assert apart.place.results("machine0/s") == alone
    assert len(list((apart.place.root / "artifacts").rglob("trial-*.zip"))) == N


def test_workers_of_a_machine_go_on_without_the_one_that_led(apart: Apart, alone: list[tuple]) -> None:
    """They have one folder, and one of them speaks for all."""
    leads = apart.start()
    wait_for((apart.place.folder(apart.folder(leads)) / "study.json").exists)
    joins = apart.start("cluster.workers=2")
    wait_for(lambda: len(apart.owners()) == 3 or any(process.poll() is not None for process in apart.running))
    leads.kill()
    (out,) = apart.finish(leads).values()
    assert apart.leads is joins and "This one leads it now" in out and "wins with" in out
    check(apart, alone)


def test_the_best_are_kept(apart: Apart) -> None:
    """Also on the disk of the server."""
    for _ in range(2):
        apart.start("tracking.keep=1", "cluster.workers=2", "search.confirm.k=3", "search.confirm.repeats=1")
    apart.finish()
    leads = apart.place.folder(apart.folder(apart.leads))
    study = load(leads)
    assert study.winner is not None and len(study.completed) == N
    names = {study.completed[0].name, study.winner.name, "default"}
    assert {file.parts[-3] for file in leads.glob("*/adapters/adapters.safetensors")} == names
    files = list((apart.place.root / "artifacts").rglob("trials/*.zip"))
    assert {file.stem for file in files} == {trial.name for trial in study.trials}
    assert {file.stem for file in files if "adapters/adapters.safetensors" in ZipFile(file).namelist()} == names


def test_what_cannot_join(apart: Apart, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    leads, _ = apart.start_two()
    assert main(apart.arguments("cluster.shared_folder=true")) == 2
    assert "with cluster.shared_folder=false" in capsys.readouterr().err
    assert main(apart.arguments(f"output_dir={apart.place.root}/outputs/machine{apart.running.index(leads)}")) == 2
    assert "Another lora-sweep writes to" in capsys.readouterr().err
    assert not (apart.place.root / "outputs" / "machine2").exists()
    apart.finish()


def test_stopping_reaches_other_machines(apart: Apart, capsys: pytest.CaptureFixture[str]) -> None:
    leads = apart.start("trainer.iters=1000")
    here = apart.place.folder(apart.folder(leads))
    wait_for((here / "study.json").exists)
    joins = apart.start("trainer.iters=1000")
    there = apart.place.folder(apart.folder(joins))
    place = ["--output-dir", str(here.parent)]
    wait_for(lambda: any(t.state == "running" for t in load_trials(there)))
    (name,) = (trial.name for trial in load_trials(there) if trial.state == "running")
    assert main(["stop", "s", name, *place]) == 0
    assert f"{name} has ended" in capsys.readouterr().out
    (stopped,) = (trial for trial in load_trials(there) if trial.name == name)
    assert (stopped.state, stopped.reason) == ("pruned", STOPPED)

    assert main(["stop", "s", name, *place]) == 2
    assert f"{name} is not a running trial of s" in capsys.readouterr().err
    assert main(["stop", "s", *place]) == 0
    end = time.monotonic() + 60
    while joins.poll() is None or leads.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert (leads.returncode, joins.returncode) == (130, 130)
