"""The Optuna side of a search: one study in one storage, created or resumed, asked and told."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lora_core.errors import UserError
from lora_core.records import TrialRecord
from reports.constraints import ALIASES, Constraint, parse
from sweeps.axes import Axis, storable
from sweeps.conditions import conditions_of, parents_first, present
from sweeps.config import SweepConfig, is_shared
from sweeps.connect import alone, sqlite_file
from sweeps.crew import Crew, Sign, Solo, turn
from sweeps.fingerprint import differences, fingerprint, identity
from sweeps.patience import patient
from sweeps.pruners import make_pruner
from sweeps.requests import StopRequest
from sweeps.samplers import DistinctSampler, exhausted
from sweeps.storage import open_storage

PROCESS = "process"  # the attribute of a trial that says who runs it
RUN = "run"  # the attribute of a study that names its run in MLflow
# Of trials that Optuna is told have failed samplers learn nothing, and propose the like again. So they are told as
# pruned, and as breaking one of these constraints, by the reason.
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.PRUNED}
FAULTS = {"diverged": "finite", "out of memory": "memory"}
OTHER_FAULT = "trains"


@dataclass
class Proposal:
    """A trial to run: its Optuna number and the values of its axes. `crashes`: how often the training process
    died on it; `begun`: whether it was begun before, here or elsewhere."""

    number: int
    values: dict[str, Any]
    crashes: int = 0
    begun: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Evaluation:
    """A trial's validation loss after `step` optimizer steps."""

    number: int
    step: int
    loss: float

    def order(self) -> tuple[bool, float, int]:
        """Best first; what is no number comes last."""
        missing = math.isnan(self.loss)
        return missing, 0.0 if missing else self.loss, self.number


class Study:
    """A study in `config.storage`. Raises UserError where the storage cannot be used, or where a study of this
    name was made with settings that give other results. `contents`: what the model and the data hold, as short
    hashes by name; they are part of what must be the same. `steps`: of a trial that is not stopped early. `earlier`:
    trials of other studies that the sampler learns from too. `there`: trials that have ended on disk; what the storage
    has lost of them is told again."""

    def __init__(
        self, name: str, config: SweepConfig, axes: list[Axis], contents: dict[str, str], steps: int = 1,
        earlier: Sequence[FrozenTrial] = (), there: Sequence[TrialRecord] = (),
    ) -> None:  # fmt: skip
        self.steps = steps
        self.pruner = make_pruner(config.search.pruner, steps)
        self.objectives = [ALIASES.get(each, each) for each in config.search.objectives or ["val_loss"]]
        self.constraints = [parse(text) for text in config.search.constraints or []]
        self.axes = {axis.key: axis for axis in axes}
        self.n_trials = config.n_trials
        self.distributions = {key: axis.distribution() for key, axis in self.axes.items()}
        self.conditions = conditions_of(config.search.when, axes)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = open_storage(config.storage)
        self.is_new = name not in optuna.get_all_study_names(storage)
        self.optuna = optuna.create_study(
            study_name=name, storage=storage, load_if_exists=True,
            directions=["minimize"] * len(self.objectives),
            sampler=DistinctSampler(
                config.search.sampler, config.seed, self.distributions, _enqueued(config), self.conditions, earlier,
                {trial.number: _stored(trial.params) for trial in there},
            ),
            pruner=optuna.pruners.NopPruner(),  # `judge` has its own
        )  # fmt: skip
        self._check_same(name, config, axes, contents)
        self._live: dict[int, optuna.Trial] = {}
        self.say: Callable[[str], None] = print
        self.is_shared = is_shared(config.storage) or config.cluster.workers > 1
        self.crew: Solo | Crew = self._join(storage, config) if self.is_shared else Solo()

    def _join(self, storage: optuna.storages.RDBStorage, config: SweepConfig) -> Crew:
        name, grace = f"study {self.optuna.study_name}", config.cluster.grace
        if is_shared(config.storage):
            return Crew(self.optuna, partial(turn, storage.engine, name, grace), grace)
        return Crew(self.optuna, partial(alone, f"{sqlite_file(config.storage)} {name}"), grace)

    @property
    @patient
    def ended(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials() if trial.state.is_finished()]

    @patient
    def ask(self) -> Proposal | None:
        """The next trial: one that was begun and is not at work anywhere, or a new one. None once there are `n_trials`,
        or nothing new is left in the space."""
        with self.crew.alone():
            trials = self._trials()
            begun = next((trial for trial in trials if self._is_left_behind(trial)), None)
            if begun is not None:
                trial = optuna.Trial(self.optuna, begun._trial_id)
            elif len(trials) >= self.n_trials or self._all_tried(trials):
                return None
            else:
                trial = self.optuna.ask()
            proposal = self._proposal(trial)
            proposal.begun = begun is not None
        self._live[trial.number] = trial
        return proposal

    @patient
    def lost(self) -> list[int]:
        """Trials that were begun here and are another process's now, because this one gave no sign of life."""
        if self.crew.me is None:
            return []
        owners = {trial.number: trial.user_attrs.get(PROCESS) for trial in self._trials()}
        return [number for number in self._live if owners[number] != self.crew.me]

    def give_up(self, number: int) -> None:
        """Leaves a trial to the process that has taken it over."""
        del self._live[number]

    @property
    @patient
    def is_over(self) -> bool:
        """Whether no trial is at work, here or elsewhere."""
        return all(trial.state != TrialState.RUNNING for trial in self._trials())

    @patient
    def take_lead(self) -> bool:
        """Whether this process leads the study: it does from now on if nobody else does."""
        return self.crew.take_lead()

    @property
    @patient
    def sign_of_lead(self) -> Sign:
        """The latest sign of life of the process that leads."""
        return self.crew.sign_of_lead

    @patient
    def is_led(self, since: Sign) -> bool:
        """Whether another process is sure to finish the study: one that has led it beyond that sign of life."""
        return self.crew.is_led(since)

    @patient
    def pass_on(self, request: StopRequest) -> None:
        """Has the processes on other machines know what this one was asked to stop."""
        self.crew.pass_on(request)

    @property
    def run_id(self) -> str | None:
        """The study's run in MLflow, which carries trials from machine to machine."""
        return self.optuna.user_attrs.get(RUN)

    def set_run_id(self, run_id: str) -> None:
        self.optuna.set_user_attr(RUN, run_id)

    @property
    @patient
    def is_exhausted(self) -> bool:
        trials = self._trials()
        return len(trials) < self.n_trials and self._all_tried(trials)

    def _all_tried(self, trials: list[FrozenTrial]) -> bool:
        return exhausted(self.distributions, trials, self.conditions)

    @patient
    def judge(self, rows: list[Evaluation]) -> list[int]:
        """Reports evaluations; returns the numbers of the trials that the pruner would rather stop.

        No trial is judged at a step before all of `rows` at that step are reported; then the best comes first.
        """
        beaten: list[int] = []
        for step in sorted({row.step for row in rows}):
            there = sorted((row for row in rows if row.step == step), key=Evaluation.order)
            for row in there:
                self.report(row)
            trials = {trial.number: trial for trial in self.optuna.get_trials(deepcopy=False)}
            everyone = list(trials.values())
            beaten += [row.number for row in there if self.pruner.beaten(trials[row.number], step, everyone)]
        return list(dict.fromkeys(beaten))

    @patient
    def report(self, row: Evaluation) -> None:
        trial = self._live[row.number]
        if len(self.objectives) > 1:
            return  # Optuna takes no reports then, and there is no pruner
        # A trial that is run again reports the same once more.
        if row.step not in self.optuna._storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(row.loss, row.step)

    @patient
    def crashed(self, number: int) -> None:
        """Notes that the training process died while it ran this trial."""
        trial = self._live[number]
        trial.set_user_attr("crashes", trial.user_attrs.get("crashes", 0) + 1)

    @patient
    def tell(self, record: TrialRecord) -> None:
        """Ends the trial in Optuna as its record on disk says it ended."""
        assert record.number is not None
        trial = self._live[record.number]
        if not self.optuna._storage.get_trial(trial._trial_id).state.is_finished():
            self._tell(trial, record)
        del self._live[record.number]

    def _tell(self, trial: optuna.Trial, record: TrialRecord) -> None:
        trial.set_user_attr("metrics", record.metrics)
        if record.reason:
            trial.set_user_attr("reason", record.reason)
        if record.state == "failed":
            trial.set_constraint(FAULTS.get(record.reason or "", OTHER_FAULT), 1.0)
        for constraint in self.constraints:
            self._tell_constraint(trial, constraint, record)
        state = STATES[record.state]
        values = [record.metrics[each] for each in self.objectives] if state == TrialState.COMPLETE else None
        self.optuna.tell(trial, values, state=state)

    def _tell_constraint(self, trial: optuna.Trial, constraint: Constraint, record: TrialRecord) -> None:
        """A trial that did not complete may lack the number; a complete one that does breaks the constraint."""
        excess = constraint.excess(record.metrics)
        if excess is None and record.state == "complete":
            excess = 1.0
        if excess is not None:
            trial.set_constraint(str(constraint), excess)

    def forget(self) -> None:
        """Takes the study out of its storage, if this object has put it there."""
        if self.is_new:
            optuna.delete_study(study_name=self.optuna.study_name, storage=self.optuna._storage)

    def record(self, trial: FrozenTrial) -> TrialRecord:
        """What the database knows of a trial that has ended."""
        told, step = trial.user_attrs, trial.last_step or 0
        return TrialRecord(
            trial_name(trial.number), "trial", _state(trial), trial.number, params=self._values(trial),
            reason=told.get("reason"), metrics=told.get("metrics", {}), step=step,
        )  # fmt: skip

    def _values(self, trial: optuna.Trial | FrozenTrial) -> dict[str, Any]:
        return {key: self.axes[key].decode(param) for key, param in trial.params.items()}

    def _trials(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False)

    def _is_left_behind(self, trial: FrozenTrial) -> bool:
        """By an earlier run, by a process that is gone, or by a database that went away halfway through `ask`."""
        here = trial.number in self._live
        return trial.state == TrialState.RUNNING and not here and not self.crew.at_work(trial.user_attrs.get(PROCESS))

    def _proposal(self, trial: optuna.Trial) -> Proposal:
        if self.crew.me is not None:
            trial.set_user_attr(PROCESS, self.crew.me)
        # An interruption may have come before every axis was drawn; what is there stays as it is.
        for key in parents_first(list(self.distributions), self.conditions):
            if key in present({**trial.params, key: None}, self.conditions):
                trial._suggest(key, self.distributions[key])
        return Proposal(trial.number, self._values(trial), trial.user_attrs.get("crashes", 0))

    def _check_same(self, name: str, config: SweepConfig, axes: list[Axis], contents: dict[str, str]) -> None:
        ours = identity(config.to_dict(), [axis.to_dict() for axis in axes]) | contents
        known = self.optuna.user_attrs.get("identity")
        if known is None:
            self.optuna.set_user_attr("identity", ours)
            self.optuna.set_user_attr("fingerprint", fingerprint(config, axes))
        else:
            check_same(name, known, ours)


def _state(trial: FrozenTrial) -> str:
    """How a trial has ended: what was told of it the other way round."""
    if trial.state == TrialState.COMPLETE:
        return "complete"
    has_failed = trial.constraints.keys() & {*FAULTS.values(), OTHER_FAULT}
    return "failed" if has_failed or trial.state == TrialState.FAIL else "pruned"


def trial_name(number: int) -> str:
    return f"trial-{number:04d}"


def _enqueued(config: SweepConfig) -> list[dict[str, Any]]:
    return [_stored(each) for each in config.search.enqueue]


def _stored(values: dict[str, Any]) -> dict[str, Any]:
    return {key: storable(value) for key, value in values.items()}


def check_same(name: str, known: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raises UserError with the differences if two identities of study `name` are not the same."""
    if changed := differences(known, ours):
        more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
        raise UserError(
            f"study={name} exists with other settings: {'; '.join(changed[:3])}{more}.\n"
            "Give the settings it was made with, or another study= name."
        )
