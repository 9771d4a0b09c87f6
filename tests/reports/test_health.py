"""The health checks: what each finds, with its numbers, and that it finds nothing where nothing is."""

import pytest

from lora_core.records import append_metrics, load_study, load_trial, save_study, save_trial, write_metrics
from reports import curve_checks, health
from reports.reproduce import RESUMED
from reports.study import load
from tests.reports.helpers import AXES, RATE, train_config

ONE = [(8, 2.0, 1e-4, 2.0, "complete", None)]


def write_curve(folder, name, losses):
    rows = [{"step": 10 * i, "val_loss": loss, "train_loss": 1.0} for i, loss in enumerate(losses)]
    write_metrics(folder / name, rows)


def numbers(findings):
    (found,) = findings
    return found.numbers


def test_which_checks_found_something(study_folder):
    found = health.compute(load(study_folder))
    assert [each.check for each in found.findings] == [
        "edge of the space", "curves still falling", "rank", "too few trials", "failures",
    ]  # fmt: skip
    assert found.passed == ["overfitting", "versions", "comparable losses"]


def test_a_loss_that_still_falls(make_study):
    folder = make_study(trials=ONE)
    write_curve(folder, "trial-0000", [4.0, 3.0, 2.5, 2.0])
    (found,) = curve_checks.still_falling(load(folder))
    assert found.numbers == {
        "nats": 0.5, "share": 0.2, "from": 20, "to": 30, "falling": 1, "completed": 1, "iters": 60,
    }  # fmt: skip
    assert "fell by 0.5000 nats per token (20.00 %) between steps 20 and 30" in found.text
    assert found.text.endswith("trainer.iters=60")
    write_curve(folder, "trial-0000", [4.0, 2.0, 2.0, 1.99])
    assert curve_checks.still_falling(load(folder)) == []


def test_it_still_falls_though_a_rate_has_decayed(make_study):
    """Between the last two evaluations hardly anything happens then."""
    folder = make_study(trials=ONE)
    write_curve(folder, "trial-0000", [4.0, 3.5, 3.0, 2.6, 2.3, 2.1, 2.0, 1.9, 1.899])
    (found,) = curve_checks.still_falling(load(folder))
    assert (found.numbers["from"], found.numbers["to"]) == (60, 80)
    assert found.numbers["nats"] == pytest.approx(0.101)


def test_overfitting_and_dropout(make_study):
    folder = make_study(trials=[(8, 2.0, 1e-4, 2.0, "complete", None), (8, 2.0, 1e-4, 2.5, "complete", None)])
    assert curve_checks.overfit(load(folder)) == []
    write_curve(folder, "trial-0000", [4.0, 2.0, 2.5])
    (found,) = curve_checks.overfit(load(folder))
    assert (found.numbers["nats"], found.numbers["share"], found.numbers["best_step"]) == (0.5, 0.25, 10)
    assert "where the training loss is 1.0000" in found.text
    assert found.text.endswith(f"No trial had dropout. Whether it helps: {found.proposal}") and found.proposal
    record = load_trial(folder / "trial-0001")
    record.params["lora_parameters.dropout"] = 0.1
    save_trial(folder / "trial-0001", record)
    (found,) = curve_checks.overfit(load(folder))
    assert "Losses with dropout are not lower than without (median 2.5000, n = 1; 2.0000, n = 1)." in found.text
    assert found.proposal == ""


@pytest.mark.parametrize(
    "losses, told",
    [
        ({8: 2.0, 16: 1.99}, "The best trial of rank 8 comes within 0.50 % of the best of rank 16 (2.0000 and 1.9900)"),
        ({8: 2.2, 16: 2.0}, "The largest rank tried, 16, is the best by 10.00 % over rank 8 (2.2000 and 2.0000)"),
        ({8: 2.0, 16: 2.2}, None),
        ({8: 2.0}, None),
    ],
)
def test_rank(make_study, losses, told):
    rows = [(rank, 2.0, 1e-4, loss, "complete", None) for rank, loss in losses.items()]
    found = health.rank(load(make_study(trials=rows)))
    assert [each.text.partition(":")[0] for each in found] == ([told] if told else [])


def test_ranks_are_compared_within_a_method(make_study):
    """Rank 32 is best among LoRA's trials, and DoRA's smaller ranks are ahead of it: across methods there is nothing to
    find."""
    losses = {("lora", 8): 2.2, ("lora", 32): 2.0, ("dora", 4): 1.9, ("dora", 8): 1.8, ("dora", 16): 1.99}
    rows = [(rank, 2.0, 1e-4, loss, "complete", None) for (_, rank), loss in losses.items()]
    folder = make_study(trials=rows)
    for number, (method, _) in enumerate(losses):
        trial = load_trial(folder / f"trial-{number:04d}")
        trial.config["train_type"] = method
        save_trial(folder / trial.name, trial)
    (found,) = health.rank(load(folder))
    assert found.text == (
        "Of lora, the largest rank tried, 32, is the best by 10.00 % over rank 8 (2.2000 and 2.0000): rank may be too "
        "small."
    )
    assert found.numbers["method"] == "lora" and found.numbers["best_by_rank"] == {"8": 2.2, "32": 2.0}


def test_few_trials_are_said(make_study):
    assert numbers(health.few_trials(load(make_study()))) == {"completed": 8, "axes": 3, "needed": 20}
    assert health.few_trials(load(make_study("many", trials=ONE * 20))) == []
    single = {"key": "num_layers", "kind": "categorical", "choices": ["all"]}
    told = health.few_trials(load(make_study("capped", axes=[*AXES, single])))
    assert numbers(told)["axes"] == 3, "one of a single value is none"


def test_versions(study_folder):
    assert health.versions(load(study_folder)) == []
    record = load_study(study_folder)
    record.notes, record.environment["git"] = [f"{RESUMED}mlx 0.32.4 → 0.32.5"], "abc1234 with changes"
    save_study(study_folder, record)
    assert [each.text for each in health.versions(load(study_folder))] == [
        "Resumed with other versions: mlx 0.32.4 → 0.32.5",
        "The code had changes that are not in its commit (abc1234 with changes).",
    ]


@pytest.mark.parametrize("key, other", [("max_seq_length", 64), ("iters", 20)])
def test_losses_that_cannot_be_compared(make_study, key, other):
    folder = make_study(trials=ONE * 2)
    assert health.comparable(load(folder)) == []
    record = load_trial(folder / "trial-0001")
    record.config = train_config({RATE: 1e-4, f"trainer.{key}": other})
    save_trial(folder / "trial-0001", record)
    (found,) = health.comparable(load(folder))
    assert found.numbers["key"] == f"trainer.{key}" and len(found.numbers["values"]) == 2


def test_failures_and_where_they_diverged(study_folder):
    (found,) = health.failed(load(study_folder))
    assert found.numbers == {
        "failed": 1, "trials": 10, "reasons": {"diverged": 1},
        "diverged_lowest_rate": 1e-3, "completed_highest_rate": 8e-4,
    }  # fmt: skip
    assert found.text == (
        "1 of 10 trials failed: 1 diverged. The lowest learning rate that diverged is 0.001, the highest that "
        "completed 0.0008."
    )


def test_without_a_completed_trial_only_failures_are_told(make_study):
    found = health.compute(load(make_study(trials=[(8, 2.0, 1e-4, None, "failed", "out of memory")])))
    assert [each.text for each in found.findings] == ["1 of 1 trial failed: 1 out of memory."]
    assert found.why_not and found.passed == []


def test_without_a_winner_its_checks_are_not_made(study_folder):
    record = load_study(study_folder)
    record.config = {"search": {"constraints": ["trainable_params<=1"]}}
    save_study(study_folder, record)
    found = health.compute(load(study_folder))
    assert not {*health.OF_THE_WINNER} & {*found.passed, *(each.check for each in found.findings)}
    assert found.why_not == "Without a winner nothing can be said of: " + ", ".join(health.OF_THE_WINNER) + "."


def test_a_curve_of_one_evaluation_neither_falls_nor_rises(make_study):
    folder = make_study(trials=ONE)
    write_metrics(folder / "trial-0000", [])
    append_metrics(folder / "trial-0000", {"step": 40, "val_loss": 2.0})
    study = load(folder)
    assert curve_checks.still_falling(study) == [] and curve_checks.overfit(study) == []


def test_proposed_settings_come_with_where_they_belong(make_study):
    found = health.compute(load(make_study()))
    assert found.advice.startswith("A setting written key=value belongs")
    proposing = [each for each in found.findings if each.proposal]
    assert [each.check for each in proposing] == ["edge of the space", "curves still falling"]
    assert all(each.text.endswith(f": {each.proposal}") for each in proposing)
    failed = make_study("failed", trials=[(8, 2.0, 1e-4, None, "failed", "an error with a=b in it")])
    assert health.compute(load(failed)).advice == ""


def test_a_proposed_range_is_quoted_for_the_shell(make_study):
    """The winner has the highest learning rate."""
    rows = [(16, 2.0, rate, loss, "complete", None) for rate, loss in ((1e-4, 2.0), (3e-4, 1.75), (1e-3, 1.5))]
    texts = [found.text for found in health.edge(load(make_study(trials=rows))) if RATE in found.text]
    assert len(texts) == 1 and texts[0].endswith(f" '{RATE}=tag(log,interval(1e-05,0.0032))'"), texts
