"""What a lower loss costs, to the digit."""

import pytest

from lora_core.records import load_trial, save_trial
from reports import answer, sentences, tradeoffs
from reports.study import load

# trial → trainable parameters
SIZES = {0: 200, 1: 400, 3: 800, 5: 400, 6: 200, 7: 100, 8: 800, 9: 500}


@pytest.fixture
def priced(study_folder):
    """The recorded study with sizes that differ."""
    for number, size in SIZES.items():
        folder = study_folder / f"trial-{number:04d}"
        record = load_trial(folder)
        record.metrics["trainable_params"] = size
        save_trial(folder, record)
    return study_folder


def test_the_front_is_what_no_trial_beats(priced):
    found = tradeoffs.compute(load(priced))
    (by_size,) = found.each
    assert by_size.cost == "trainable_params" and found.same == ["train_seconds"]
    assert [(each.name, each.cost, each.loss) for each in by_size.front] == [
        ("trial-0007", 100, 2.0625),
        ("trial-0005", 400, 1.875),
        ("trial-0003", 800, 1.75),
    ]
    assert len(by_size.trades) == 8


def test_an_equal_cost_and_a_higher_loss_is_beaten(priced):
    """trial-0008 costs what the winner costs, and is worse."""
    beaten = {each.name for each in tradeoffs.compute(load(priced)).each[0].trades if not each.best}
    assert beaten == {"trial-0000", "trial-0001", "trial-0006", "trial-0008", "trial-0009"}


def test_what_trials_share_is_said_where_it_is_drawn(priced):
    assert "trained together" not in tradeoffs.compute(load(priced)).caption
    record = load_trial(priced / "trial-0003")
    record.metrics["train_seconds"] = 30.0
    save_trial(priced / record.name, record)
    assert "Memory and time are those of all trials in a batch." in tradeoffs.compute(load(priced)).caption


def test_the_panel_draws_them_apart(priced):
    (panel,) = tradeoffs.panels(tradeoffs.compute(load(priced)), "trial-0003")
    beaten, best, winner = panel.series
    assert (beaten.colour, len(beaten.x), best.x, winner.x) == ("trial", 5, [100, 400, 800], [800])


def test_why_it_is_not_drawn(make_study):
    assert tradeoffs.compute(load(make_study())).why_not == "Not drawn: all trials cost the same."
    assert "0 trials completed" in tradeoffs.compute(load(make_study("none", trials=[]))).why_not


def test_the_cheapest_that_is_hardly_worse(priced):
    """Within 1 % of the winner's 1.75 lies nothing, until trial-0005 does."""
    assert answer.compute(load(priced)).cheapest is None
    record = load_trial(priced / "trial-0005")
    record.metrics["best_val_loss"] = 1.7578125
    save_trial(priced / "trial-0005", record)
    found = answer.compute(load(priced))
    assert found.cheapest == answer.Cheapest("trial-0005", 400, 800, 0.0078125)
    assert sentences.body(found)[3] == (
        "The smallest within 1.00 % of its loss is trial-0005: 400 trainable parameters, against 800, and a loss "
        "higher by 0.0078."
    )
