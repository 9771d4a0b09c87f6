"""Searches that share a study through PostgreSQL: processes here, machines elsewhere."""

import os
import signal
import subprocess
import time
from pathlib import Path
from threading import Thread

import pytest
from optuna.trial import TrialState

from lora_core.records import StudyRecord, load_trials
from sweeps import exchange
from sweeps.cli import main
from sweeps.crew import Crew
from sweeps.display import Display
from sweeps.study import Study
from sweeps.telling import Teller
from tests import postgres
from tests.fault_table import tried
from tests.sweeps.machines import GRACE, Machines, N, check
from tests.sweeps.test_search import alive, wait_for

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIRM = "search.confirm.k=1"


@pytest.fixture(params=["together", "apart"])
def machines(request: pytest.FixtureRequest) -> Machines:
    return request.getfixturevalue(request.param)


@pytest.mark.slow
def test_two_machines(machines: Machines, alone: list[tuple]) -> None:
    leads, joins = machines.start_two()
    said = machines.finish()
    led, joined = said[leads], said[joins]
    assert "wins with" in led
    assert "led by" in joined and "The process that leads writes the report" in joined and "wins with" not in joined
    for out in (led, joined):  # each shows what the other has done too
        assert all(f"trial-{number:04d}" in out for number in range(N))
    check(machines, alone)


@pytest.mark.slow
def test_what_cannot_join(together: Machines, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    together.start_two()
    assert main(together.arguments(f"output_dir={tmp_path}/elsewhere")) == 2
    said = capsys.readouterr().err
    assert f"but not in {tmp_path}/elsewhere/s" in said and "share its output_dir=" in said
    assert not (tmp_path / "elsewhere").exists()
    assert main(together.arguments("n_trials=99")) == 2
    assert f"with n_trials={N}" in capsys.readouterr().err
    assert main(together.arguments("lora_parameters.rank=2,8")) == 2
    assert "exists with other settings" in capsys.readouterr().err
    together.finish()


@pytest.mark.faults
@pytest.mark.parametrize("who", ["the one that leads", "the one that joined"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_one_of_two_ends(machines: Machines, alone: list[tuple], who: str, number: int) -> None:
    leads, joins = machines.start_two()
    dead = leads if who == "the one that leads" else joins
    dead.send_signal(number)
    with tried(f"{'kill -9' if number == signal.SIGKILL else 'SIGINT'} of one of two machines"):
        (out,) = machines.finish(dead).values()
        assert "wins with" in out
        assert ("This one leads it now" in out) == (dead is leads)
        check(machines, alone)


@pytest.mark.faults
@tried("PostgreSQL stopped as by a power cut, and started again")
def test_the_database_restarts(machines: Machines, alone: list[tuple], postgres_server: postgres.Server) -> None:
    machines.start_two()
    postgres_server.stop()
    time.sleep(2 * GRACE)  # nobody is taken for gone meanwhile
    postgres_server.start()
    out = "".join(machines.finish().values())
    assert "does not answer" in out and "gone" not in out and "taken over" not in out
    check(machines, alone)


@pytest.mark.faults
@pytest.mark.parametrize("who", ["the one that leads", "the one that joined"])
@tried("SIGSTOP of one of two machines past the grace, then SIGCONT")
def test_one_of_two_sleeps(machines: Machines, alone: list[tuple], who: str) -> None:
    leads, joins = machines.start_two()
    sleeper = leads if who == "the one that leads" else joins
    both = [sleeper.pid, *map(int, children(sleeper))]
    wait_for(lambda: machines.works(sleeper))
    for process in both:
        signal_to(process, signal.SIGSTOP)
    time.sleep(3 * GRACE)
    wait_for(lambda: not machines.works(sleeper) and machines.leads is not sleeper)
    for process in reversed(both):  # while their parent sleeps, its children are there, dead or alive
        signal_to(process, signal.SIGCONT)
    out = "".join(machines.finish().values())
    assert "taken over trials of this one" in out
    assert ("Another process leads the study now" in out) == (sleeper is leads)
    check(machines, alone)


@pytest.mark.faults
def test_one_that_has_slept_knows_at_once_that_it_leads_no_more(
    together: Machines, alone: list[tuple], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It tells nobody what the other one tells, also before it has looked at who is there."""
    monkeypatch.setattr(Crew, "_stay", lambda self: None)  # no sign of life, and no look
    real, slept = Display.evaluated, []

    def sleep_through_it() -> None:
        lead = together.study.user_attrs["lead"]
        ended = len(together.study.get_trials(states=(TrialState.COMPLETE,)))
        together.start()
        wait_for(lambda: together.study.user_attrs["lead"] != lead)
        wait_for(lambda: len(together.study.get_trials(states=(TrialState.COMPLETE,))) > ended + 1)

    def evaluated(self: Display, trial: str, row: dict[str, float]) -> None:
        if trial == "trial-0001" and not slept:
            slept.append(trial)
            sleep_through_it()
        real(self, trial, row)

    monkeypatch.setattr(Display, "evaluated", evaluated)
    assert main(together.arguments()) == 0
    out = capsys.readouterr().out
    assert "taken over trials of this one" in out and "Another process leads the study now" in out
    together.finish()
    check(together, alone)


@pytest.mark.faults
def test_a_drive_that_is_slower_than_the_database(
    together: Machines, alone: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that leads finishes the study once it sees what the other one has trained to the end."""
    real, asked = exchange.has_ended, {}

    def late(folder: Path) -> bool:
        return real(folder) and time.monotonic() - asked.setdefault(folder.name, time.monotonic()) > 3

    def joined() -> None:
        wait_for((together.place.folder() / "study.json").exists)
        together.start()

    monkeypatch.setattr(exchange, "has_ended", late)
    monkeypatch.setattr(Study, "ask", lambda self: None)  # the trials are the other one's
    monkeypatch.setattr(Study, "is_over", property(lambda self: len(self.ended) == N))
    Thread(target=joined).start()
    assert main(together.arguments()) == 0
    together.finish()
    check(together, alone, "s")


@pytest.mark.faults
def test_the_last_trial_ends_while_the_one_that_leads_is_on_its_way_out(
    together: Machines, alone: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted, it takes its time to tell MLflow. The other one must not leave the study to it."""
    real = Teller.close_study

    def complete(count: int) -> None:
        wait_for(lambda: len(together.study.get_trials(states=(TrialState.COMPLETE,))) >= count)

    def slow(self: Teller, study: StudyRecord, state: str, report: Path | None) -> str | None:
        complete(N)
        time.sleep(2)
        return real(self, study, state, report)

    def joined_and_interrupted() -> None:
        wait_for((together.place.folder() / "study.json").exists)
        together.start()
        complete(1)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Teller, "close_study", slow)
    monkeypatch.setattr(Study, "ask", lambda self: None)  # the trials are the other one's,
    monkeypatch.setattr(Study, "is_over", False)  # for which this one waits
    Thread(target=joined_and_interrupted).start()
    assert main(together.arguments()) == 130
    (out,) = together.finish().values()
    assert "This one leads it now" in out and "wins with" in out
    check(together, alone)


@pytest.mark.faults
def test_the_one_that_leads_is_killed_as_the_last_trial_ends(
    together: Machines, alone: list[tuple], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other one does not leave before it knows that somebody confirms the winner and writes the report."""
    leads, real = together.start(CONFIRM), Study.is_over
    wait_for((together.place.folder() / "study.json").exists)

    def is_over(self: Study) -> bool:
        over = real.fget(self)  # type: ignore[attr-defined]
        if over:
            leads.kill()
            leads.wait()
        return over

    monkeypatch.setattr(Study, "is_over", property(is_over))
    with tried("kill -9 of one of two machines"):
        assert main(together.arguments(CONFIRM)) == 0
        out = capsys.readouterr().out
        assert "This one leads it now" in out and "wins with" in out
        assert together.place.record().state == "complete"
        names = {trial.name for trial in load_trials(together.place.folder()) if trial.role == "confirm"}
        assert len(names) == 3
        assert [result for result in together.place.results() if result[0] not in names] == alone


def children(process: subprocess.Popen) -> list[str]:
    return subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()


def signal_to(process: int, number: int) -> None:
    subprocess.run(["kill", f"-{signal.Signals(number).name.removeprefix('SIG')}", str(process)], check=True)


@pytest.mark.faults
@tried("kill -9 of two machines at once")
def test_all_end_and_the_command_goes_on(machines: Machines, alone: list[tuple]) -> None:
    both = machines.start_two()
    trainers = [int(child) for process in both for child in children(process)]
    for process in both:
        process.kill()
    wait_for(lambda: not any(map(alive, trainers)))
    machines.start()
    (out,) = machines.finish(*both).values()
    assert "wins with" in out
    check(machines, alone)
