"""Several processes at work on one study in PostgreSQL, here as several objects in one process."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from threading import Thread

import pytest

from lora_core.records import TrialRecord
from sweeps.axes import Axis
from sweeps.config import ClusterConfig, SearchConfig, SweepConfig
from sweeps.crew import MISSES, Crew
from sweeps.requests import StopRequest
from sweeps.storage import opening_shared
from sweeps.study import Evaluation, Proposal, Study
from tests import postgres
from tests.fault_table import tried

RATE = Axis("optimizer.learning_rate", "float", low=1e-5, high=1e-3, log=True)
RANK = Axis("lora_parameters.rank", "categorical", choices=[2, 4])
GRACE = 1.5


@pytest.fixture
def config(database: str) -> SweepConfig:
    search = SearchConfig(sampler={"name": "random"}, pruner={"name": "none"})
    return SweepConfig(storage=database, n_trials=12, search=search, cluster=ClusterConfig(grace=GRACE))


class Machines:
    """Opens the study as another machine each time."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack

    def open(self, config: SweepConfig, axes: list[Axis] | None = None) -> Study:
        with opening_shared(config.storage):
            study = Study("s", config, axes or [RATE], {})
        self.stack.callback(study.crew.leave)
        return study


@pytest.fixture
def machines() -> Iterator[Machines]:
    with ExitStack() as stack:
        yield Machines(stack)


def die(study: Study) -> None:
    """As a process does that is killed: without a word."""
    assert isinstance(study.crew, Crew)
    study.crew._left.set()
    study.crew._thread.join()


def asked(study: Study) -> Proposal:
    proposal = study.ask()
    assert proposal is not None
    return proposal


def ended(proposal: Proposal, value: float = 1.0) -> TrialRecord:
    name = f"trial-{proposal.number:04d}"
    return TrialRecord(name, "trial", "complete", proposal.number, metrics={"best_val_loss": value})


def all_of(study: Study) -> list[int]:
    """Asks and tells until there is nothing more to do; returns the numbers."""
    numbers = []
    while (proposal := study.ask()) is not None:
        study.tell(ended(proposal))
        numbers.append(proposal.number)
    return numbers


def test_many_machines_share_a_budget(config: SweepConfig, machines: Machines) -> None:
    """They open a database without tables together, and each number goes to one of them."""
    config = replace(config, n_trials=40)
    found: list[list[int]] = []

    def work() -> None:
        found.append(all_of(machines.open(config)))

    threads = [Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for numbers in found for number in numbers) == list(range(40))
    assert sum(map(bool, found)) > 1, "one machine did all: nothing was shown"


def test_settings_do_not_depend_on_who_asks(config: SweepConfig, machines: Machines, tmp_path: object) -> None:
    alone = Study("s", replace(config, storage=f"sqlite:///{tmp_path}/optuna.db"), [RATE], {})
    one, other = machines.open(config), machines.open(config)
    for turn in (one, other, other, one, other, one):
        assert asked(turn) == asked(alone)


def test_no_setting_is_drawn_twice(config: SweepConfig, machines: Machines) -> None:
    one, other = machines.open(config, [RANK]), machines.open(config, [RANK])
    assert {asked(one).values["lora_parameters.rank"], asked(other).values["lora_parameters.rank"]} == {2, 4}
    assert one.ask() is None and other.is_exhausted and not one.is_over


def test_running_trials_of_others_are_judged_with(config: SweepConfig, machines: Machines) -> None:
    config.search.pruner = {"name": "median", "n_startup_trials": 2}
    one, other = machines.open(config), machines.open(config)
    for loss in (1.0, 2.0):
        assert one.judge([Evaluation(asked(one).number, 5, loss)]) == []
    beaten, fine = asked(other).number, asked(other).number
    assert other.judge([Evaluation(beaten, 5, 3.0), Evaluation(fine, 5, 0.5)]) == [beaten]


def test_trials_of_a_machine_that_died(config: SweepConfig, machines: Machines) -> None:
    one, other = machines.open(config), machines.open(config)
    left, _ = asked(one), asked(other)
    one.tell(ended(asked(one)))
    die(one)
    assert asked(other).number == 3, "a machine is not gone at once"
    wait_for_gone(one, other)
    assert asked(other) == left
    assert other.lost() == [] and one.lost() == [left.number]


def wait_for_gone(one: Study, other: Study) -> None:
    end = time.monotonic() + 10 * GRACE
    while other.crew.at_work(one.crew.me):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_trials_of_a_machine_that_left(config: SweepConfig, machines: Machines) -> None:
    one, other = machines.open(config), machines.open(config)
    left = asked(one)
    one.crew.leave()
    wait_for_gone(one, other)
    assert asked(other) == left


def test_a_machine_that_slept_notices_what_it_lost(config: SweepConfig, machines: Machines) -> None:
    one, other = machines.open(config), machines.open(config)
    assert one.take_lead() and not other.take_lead()
    first, second = asked(one), asked(one)
    die(one)
    wait_for_gone(one, other)
    assert asked(other) == first and other.take_lead() and other.crew.leads
    assert not one.crew.leads, "it knows at once, without a look"
    assert one.lost() == [first.number]
    one.give_up(first.number)
    assert one.lost() == []
    # It wakes up, and goes on as a member of the crew with what nobody has taken.
    crew = one.crew
    assert isinstance(crew, Crew)
    crew._enter()
    crew._look()
    assert not crew.leads and not crew.leaderless and crew.lead == other.crew.lead  # type: ignore[attr-defined]
    wait = time.monotonic() + 10 * GRACE
    while not other.crew.at_work(crew.me) and time.monotonic() < wait:
        time.sleep(0.05)
    one.tell(ended(second))
    other.tell(ended(first))
    assert one.is_over


def test_told_twice_counts_once(config: SweepConfig, machines: Machines) -> None:
    one, other = machines.open(config), machines.open(config)
    first = asked(one)
    die(one)
    wait_for_gone(one, other)
    assert asked(other) == first
    one.tell(ended(first, 1.0))
    other.tell(ended(first, 2.0))
    assert [trial.value for trial in other.ended] == [1.0]


def test_one_leads_and_another_takes_over(config: SweepConfig, machines: Machines) -> None:
    studies = [machines.open(config) for _ in range(3)]
    assert [study.take_lead() for study in studies] == [True, False, False]
    die(studies[0])
    wait_for_gone(studies[0], studies[1])
    wait_for_gone(studies[0], studies[2])
    assert studies[1].crew.leaderless
    assert [study.take_lead() for study in studies[1:]] == [True, False]


def test_one_that_leads_and_is_interrupted_finishes_nothing(config: SweepConfig, machines: Machines) -> None:
    """While it saves what it has, the trials of the others may all end: one of them has to wait for it to leave."""
    leads, joins, other = (machines.open(config) for _ in range(3))
    assert leads.take_lead() and not joins.take_lead()
    joins.crew.part()
    assert is_led_after_a_while(other), "who has said so does not lead"
    leads.crew.part()
    assert not is_led_after_a_while(joins) and not joins.take_lead(), "it is there still"
    leads.crew.leave()
    wait_for_gone(leads, joins)
    assert not joins.is_led(joins.sign_of_lead) and joins.take_lead() and is_led_after_a_while(other)


def is_led_after_a_while(study: Study) -> bool:
    """With time for two signs of life."""
    sign = study.sign_of_lead
    time.sleep(2 * GRACE / MISSES)
    return study.is_led(sign)


def test_one_that_leads_and_dies_gives_no_sign_of_life(config: SweepConfig, machines: Machines) -> None:
    """If it does so as the last trial ends, the others do not leave the study to it."""
    leads, joins = (machines.open(config) for _ in range(2))
    assert leads.take_lead() and is_led_after_a_while(joins)
    die(leads)
    assert not is_led_after_a_while(joins)
    wait_for_gone(leads, joins)
    assert joins.take_lead() and not is_led_after_a_while(joins), "this one leads"


def test_one_that_has_finished_the_study_and_left(config: SweepConfig, machines: Machines) -> None:
    leads, joins = (machines.open(config) for _ in range(2))
    assert leads.take_lead()
    leads.crew.leave()
    assert joins.is_led(joins.sign_of_lead)


def test_what_one_is_asked_to_stop_all_hear_of(config: SweepConfig, machines: Machines) -> None:
    """But for those that come later."""
    one, other = machines.open(config), machines.open(config)
    request = StopRequest(["trial-0001"])
    one.pass_on(request)
    end = time.monotonic() + 10 * GRACE
    while other.crew.asked != (request,):
        assert time.monotonic() < end
        time.sleep(0.05)
    late = machines.open(config)
    time.sleep(GRACE)
    assert late.crew.asked == ()
    one.pass_on(StopRequest(["trial-0001"], study=True))
    while not any(each.study for each in late.crew.asked):
        assert time.monotonic() < end + 10 * GRACE
        time.sleep(0.05)


@pytest.mark.faults
@tried("PostgreSQL stopped as by a power cut, and started again", 3)
def test_the_database_restarts(
    config: SweepConfig, machines: Machines, postgres_server: postgres.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """At random moments of what the machines ask of it; none of them takes another for gone."""
    config = replace(config, n_trials=150)
    studies = [machines.open(config) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        working = [threads.submit(reported, study) for study in studies]
        for _ in range(3):
            time.sleep(1)
            postgres_server.stop()
            time.sleep(GRACE)
            postgres_server.start()
        found = [numbers for work in working for numbers in work.result()]
    assert sorted(found) == list(range(150))
    assert all(trial.state.name == "COMPLETE" for trial in studies[0].ended)
    assert "does not answer" in capsys.readouterr().out


def reported(study: Study) -> list[int]:
    """As `all_of`, with evaluations on the way."""
    numbers = []
    while (proposal := study.ask()) is not None:
        study.judge([Evaluation(proposal.number, step, 1.0) for step in (1, 2)])
        assert study.lost() == []
        study.tell(ended(proposal))
        numbers.append(proposal.number)
    return numbers
