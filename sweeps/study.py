"""The Optuna side of a search: one study in one storage, created or resumed, asked and told."""

from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lora_core.errors import UserError
from lora_core.records import TrialRecord
from sweeps.axes import Axis
from sweeps.config import SweepConfig
from sweeps.fingerprint import differences, fingerprint, identity
from sweeps.samplers import DistinctSampler, exhausted, make_pruner

SQLITE_TIMEOUT = 60  # seconds to wait for a locked database


@dataclass
class Proposal:
    """A trial to run: its Optuna number and the values of its axes."""

    number: int
    values: dict[str, Any]


class Study:
    """A study in `config.storage`. Raises UserError where the storage cannot be used, or where a study of this
    name was made with settings that give other results."""

    def __init__(self, name: str, config: SweepConfig, axes: list[Axis]) -> None:
        self.axes = {axis.key: axis for axis in axes}
        self.n_trials = config.n_trials
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna = optuna.create_study(
            study_name=name, storage=open_storage(config.storage), load_if_exists=True, direction="minimize",
            sampler=DistinctSampler(config.search.sampler, config.seed, self._distributions()),
            pruner=make_pruner(config.search.pruner),
        )  # fmt: skip
        self._check_same(name, config, axes)
        self._live: dict[int, optuna.Trial] = {}

    @property
    def ended(self) -> list[FrozenTrial]:
        return [trial for trial in self.optuna.get_trials(deepcopy=False) if trial.state.is_finished()]

    def interrupted(self) -> list[Proposal]:
        """Trials that an earlier run of this study left unfinished, to be run again under their numbers."""
        found = []
        for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._live[trial.number] = optuna.Trial(self.optuna, trial._trial_id)
            found.append(Proposal(trial.number, self._decoded(trial.params)))
        return found

    def ask(self) -> Proposal | None:
        """The next trial; None once there are `n_trials`, or nothing new is left in the space."""
        trials = self.optuna.get_trials(deepcopy=False)
        if len(trials) >= self.n_trials or exhausted(self._distributions(), trials):
            return None
        trial = self.optuna.ask(self._distributions())
        self._live[trial.number] = trial
        return Proposal(trial.number, self._decoded(trial.params))

    @property
    def is_exhausted(self) -> bool:
        trials = self.optuna.get_trials(deepcopy=False)
        return len(trials) < self.n_trials and exhausted(self._distributions(), trials)

    def beaten(self, number: int, step: int, loss: float) -> bool:
        """Reports an evaluation; true if the pruner would rather stop the trial."""
        trial = self._live[number]
        trial.report(loss, step)
        return trial.should_prune()

    def tell(self, record: TrialRecord) -> None:
        """Ends the trial in Optuna as its record on disk says it ended."""
        assert record.number is not None
        trial = self._live.pop(record.number)
        trial.set_user_attr("metrics", record.metrics)
        if record.reason:
            trial.set_user_attr("reason", record.reason)
        state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[record.state]
        self.optuna.tell(trial, record.value if state == TrialState.COMPLETE else None, state=state)

    def _distributions(self) -> dict[str, Any]:
        return {key: axis.distribution() for key, axis in self.axes.items()}

    def _decoded(self, params: dict[str, Any]) -> dict[str, Any]:
        return {key: self.axes[key].decode(param) for key, param in params.items()}

    def _check_same(self, name: str, config: SweepConfig, axes: list[Axis]) -> None:
        ours = identity(config.to_dict(), [axis.to_dict() for axis in axes])
        known = self.optuna.user_attrs.get("identity")
        if known is None:
            self.optuna.set_user_attr("identity", ours)
            self.optuna.set_user_attr("fingerprint", fingerprint(config, axes))
        elif changed := differences(known, ours):
            more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
            raise UserError(
                f"study={name} exists with other settings: {'; '.join(changed[:3])}{more}.\n"
                "Give the settings it was made with, or another study= name."
            )


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """The storage at `url`, its tables made if need be. Raises UserError if it cannot be opened."""
    arguments: dict[str, Any] = {"connect_args": {"timeout": SQLITE_TIMEOUT}} if url.startswith("sqlite") else {}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=arguments)
    except ImportError as error:
        raise UserError(f"storage={url} needs a package: {error}. Try: uv sync --extra postgres") from None
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"storage={url} cannot be opened: {reason}") from None
