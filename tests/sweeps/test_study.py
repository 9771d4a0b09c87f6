"""The Optuna side: one study under one name, its numbers, and what is told."""

import warnings
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from lora_core.errors import UserError
from lora_core.records import TrialRecord
from sweeps import study as study_module
from sweeps.axes import Axis
from sweeps.config import SearchConfig, SweepConfig
from sweeps.study import Evaluation, Proposal, Study

RATE = Axis("optimizer.learning_rate", "float", low=1e-5, high=1e-3, log=True)
KEYS = Axis("lora_parameters.keys", "categorical", choices=[None, ["q", "v"]])
CONTENTS = {"contents of the data": "abc"}


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    return SweepConfig(storage=f"sqlite:///{tmp_path}/optuna.db", n_trials=3)


def opened(config: SweepConfig, axes: list[Axis] | None = None, contents: dict[str, str] = CONTENTS) -> Study:
    return Study("s", config, axes or [RATE, KEYS], contents)


def ended(proposal: Proposal, state: str = "complete", value: float | None = 1.0) -> TrialRecord:
    metrics = {} if value is None else {"best_val_loss": value}
    return TrialRecord(f"trial-{proposal.number:04d}", "trial", state, proposal.number, metrics=metrics)


def test_numbers_and_states(config: SweepConfig) -> None:
    study = opened(config)
    told = [("complete", 1.5), ("pruned", 2.0), ("failed", None)]
    for number, (state, value) in enumerate(told):
        proposal = study.ask()
        assert proposal is not None and proposal.number == number
        assert proposal.values["lora_parameters.keys"] in KEYS.choices  # the list itself, not its text
        study.tell(ended(proposal, state, value))
    assert study.ask() is None
    assert not study.is_exhausted
    assert [trial.state.name for trial in study.ended] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert [study.record(trial).state for trial in study.ended] == [state for state, _ in told]
    assert study.ended[0].value == 1.5


def test_what_the_storage_has_lost_keeps_its_settings(config: SweepConfig) -> None:
    """Drawn once more, when others have ended that were still running then, they might be others."""
    params = {RATE.key: 3e-4, KEYS.key: ["q", "v"]}
    drawn, there = opened(config).ask(), TrialRecord("trial-0000", "trial", "pruned", 0, params=params)
    assert drawn is not None and drawn.values != params
    lost = replace(config, storage=config.storage.replace("optuna", "new"))
    study = Study("s", lost, [RATE, KEYS], CONTENTS, there=[there])
    first, second = study.ask(), study.ask()
    assert first is not None and first.values == params
    assert second is not None and second.values != params


def test_constraints_are_told(config: SweepConfig) -> None:
    config.search.constraints = ["adapter_mb<=2", "peak_memory_gb<1"]
    study = opened(config)
    for state, metrics in (
        ("complete", {"adapter_mb": 1.5, "peak_memory_gb": 1.0}),
        ("complete", {"adapter_mb": 3.0}),
        ("pruned", {"adapter_mb": 2.0}),
    ):
        proposal = study.ask()
        assert proposal is not None
        record = ended(proposal, state)
        record.metrics |= metrics
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            study.tell(record)
    found = [trial.constraints for trial in study.ended]
    assert found[0]["adapter_mb<=2"] == -0.5 and found[0]["peak_memory_gb<1"] > 0
    assert found[1:] == [{"adapter_mb<=2": 1.0, "peak_memory_gb<1": 1.0}, {"adapter_mb<=2": 0.0}]


@pytest.mark.parametrize("objectives", [None, ["val_loss", "adapter_mb"]])
def test_the_sampler_learns_where_trials_fail(
    config: SweepConfig, tmp_path: Path, objectives: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below a learning rate there is nothing to tell losses apart by, and above it all trials diverge."""
    config.search.objectives, config.n_trials = objectives, 40

    def failures(name: str) -> int:
        config.storage = f"sqlite:///{tmp_path}/{name}.db"
        study = opened(config, [RATE])
        while (proposal := study.ask()) is not None:
            record = ended(proposal)
            record.metrics["adapter_mb"] = 1.0
            if proposal.values[RATE.key] > 1e-4:
                record = ended(proposal, "failed", None)
                record.reason = "diverged"
            study.tell(record)
        return sum(study.record(trial).state == "failed" for trial in study.ended)

    learned = failures("told as pruned")
    monkeypatch.setitem(study_module.STATES, "failed", optuna.trial.TrialState.FAIL)
    assert learned < failures("told as failed") - 5


@pytest.mark.parametrize("sampler", ["tpe", "grid", "qmc"])
def test_what_is_enqueued_comes_first(config: SweepConfig, sampler: str) -> None:
    ranks = Axis("lora_parameters.rank", "int", low=2, high=8, step=2)
    config.search.sampler = {"name": sampler}
    config.search.enqueue = [
        {"lora_parameters.keys": ["q", "v"], "lora_parameters.rank": 8},
        {"lora_parameters.rank": 6},
    ]
    config.n_trials = 9
    proposals = []
    for _ in range(8):  # resumed every time
        study = opened(config, [ranks, KEYS])
        proposal = study.ask()
        assert proposal is not None
        proposals.append(proposal.values)
        study.tell(ended(proposal))
    assert proposals[0] == {"lora_parameters.keys": ["q", "v"], "lora_parameters.rank": 8}
    assert proposals[1]["lora_parameters.rank"] == 6
    assert len({str(sorted(values.items())) for values in proposals}) == 8
    assert opened(config, [ranks, KEYS]).is_exhausted


def test_several_objectives(config: SweepConfig) -> None:
    config.search.objectives = ["val_loss", "adapter_mb"]
    config.search.pruner = {"name": "none"}
    study = opened(config)
    for size in (3.0, 2.0, 1.0):
        proposal = study.ask()
        assert proposal is not None
        assert study.judge([Evaluation(proposal.number, 4, 1.0)]) == []
        record = ended(proposal, "complete", 1.0)
        record.metrics["adapter_mb"] = size
        study.tell(record)
    assert [trial.values for trial in study.ended] == [[1.0, 3.0], [1.0, 2.0], [1.0, 1.0]]
    assert [trial.number for trial in study.optuna.best_trials] == [2]
    assert opened(config).optuna.directions == study.optuna.directions


def test_more_trials_and_other_run_control_are_welcome(config: SweepConfig) -> None:
    proposal = opened(config).ask()
    more = opened(replace(config, n_trials=10, output_dir="elsewhere", fuse=False))
    assert proposal is not None and not more.is_new
    assert more.ask() is not None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 1}, "seed: 0 → 1"),
        ({"search": SearchConfig(constraints=["adapter_mb<2"])}, 'search.constraints: null → ["adapter_mb<2"]'),
        ({"search": SearchConfig(objectives=["val_loss"])}, 'search.objectives: null → ["val_loss"]'),
        ({"search": SearchConfig(enqueue=[{RATE.key: 1e-4}])}, "search.enqueue: [] → "),
        ({"num_layers": "all"}, 'num_layers: 16 → "all"'),
        ({"seed": 1, "num_layers": 2, "train_type": "x", "quantization": "y"}, "(and 1 more)"),
    ],
)
def test_other_settings_are_refused(change: dict, told: str, config: SweepConfig) -> None:
    opened(config)
    with pytest.raises(UserError) as error:
        opened(replace(config, **change))
    assert told in str(error.value) and len(str(error.value).splitlines()) <= 3


def test_other_axes_and_other_contents_are_refused(config: SweepConfig) -> None:
    opened(config)
    with pytest.raises(UserError, match=r"axis optimizer.learning_rate: .*0.001\)\) → .*0.01\)\)"):
        opened(config, [replace(RATE, high=1e-2), KEYS])
    with pytest.raises(UserError, match=r"axis lora_parameters.keys: .* → absent"):
        opened(config, [RATE])
    with pytest.raises(UserError, match='contents of the data: "abc" → "def"'):
        opened(config, contents={"contents of the data": "def"})


def test_an_interrupted_trial_keeps_its_number_and_values(config: SweepConfig) -> None:
    first = opened(config)
    proposals = [first.ask(), first.ask()]
    assert proposals[0] is not None
    first.report(Evaluation(0, 8, 2.0))
    again = opened(config)
    assert [again.ask(), again.ask()] == proposals
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna warns of a second report at one step
        again.report(Evaluation(0, 8, 2.0))
    again.tell(ended(proposals[0]))
    third = again.ask()
    assert third is not None and third.number == 2
    assert again.ask() is None


def test_a_trial_interrupted_while_it_was_drawn(config: SweepConfig) -> None:
    undisturbed = opened(config).ask()
    other = replace(config, storage=config.storage.replace("optuna.db", "other.db"))
    study = opened(other)
    study.optuna.ask({"optimizer.learning_rate": RATE.distribution()})  # and no second axis
    assert opened(other).ask() == undisturbed


def test_crashes_are_counted(config: SweepConfig) -> None:
    study = opened(config)
    proposal = study.ask()
    assert proposal is not None
    study.crashed(proposal.number)
    assert opened(config).ask() == Proposal(proposal.number, proposal.values, crashes=1)


def test_an_exhausted_space(config: SweepConfig) -> None:
    study = opened(config, [KEYS])
    for _ in range(2):
        proposal = study.ask()
        assert proposal is not None
        study.tell(ended(proposal))
    assert study.ask() is None
    assert study.is_exhausted


def test_only_a_new_study_is_forgotten(config: SweepConfig) -> None:
    opened(config).forget()
    assert optuna.get_all_study_names(config.storage) == []
    opened(config)
    opened(config).forget()
    assert optuna.get_all_study_names(config.storage) == ["s"]
