"""History and learning curves as numbers."""

from lora_core.records import write_metrics
from reports import captions, curves, figures_html
from reports.content import compute
from reports.study import load
from tests.reports.helpers import write_repeat


def test_best_so_far_counts_completed_trials_only(study_folder):
    found = curves.history(load(study_folder))
    assert found.best == [
        (0, 2.25), (1, 2.0), (3, 1.75), (5, 1.75), (6, 1.75), (7, 1.75), (8, 1.75), (9, 1.75),
    ]  # fmt: skip
    assert [point.number for point in found.points if point.state == "pruned"] == [2]
    assert found.references == {"base": 3.5, "default": 2.1875}
    assert found.without_value == 1


def test_curves_name_best_and_default(study_folder):
    found = curves.curves(load(study_folder))
    assert {line.name: line.kind for line in found.lines if line.kind != "trial"} == {
        "default": "default",
        "trial-0003": "best",
    }
    assert found.lines[0].steps == [0, 10, 20, 30, 40] and found.base == 3.5


def test_the_winners_training_loss_is_drawn_beside_its_curve(study_folder):
    rows = [{"step": 0, "val_loss": 3.5}, {"step": 20, "val_loss": 2.0, "train_loss": 1.5}]
    write_metrics(study_folder / "trial-0003", [*rows, {"step": 40, "val_loss": 1.75, "train_loss": 0.125}])
    found = curves.curves(load(study_folder))
    assert (found.training.name, found.training.steps, found.training.losses) == ("trial-0003", [20, 40], [1.5, 0.125])
    assert found.frame[0] < 0.125, "as far down as it lies"
    (drawn,) = [line for line in figures_html.curves(found)["data"] if line["name"] == "its training loss"]
    assert (drawn["x"], drawn["y"]) == ([20, 40], [1.5, 0.125])


def test_without_a_training_loss_none_is_drawn(study_folder):
    write_metrics(study_folder / "trial-0003", [{"step": 40, "val_loss": 1.75}])
    content = compute(load(study_folder))
    assert content.curves.training is None and "training loss" not in captions.learning(content)


def test_when_trials_were_pruned_is_told(study_folder):
    content = compute(load(study_folder))
    assert content.curves.pruned == {20: 1}
    assert "× marks where a trial was pruned: 1 at step 20." in captions.learning(content)
    assert captions.pruned_at({step: 2 for step in range(1, 10)}).endswith("2 at step 6 and 6 later")


def test_an_outlier_does_not_press_the_rest_flat():
    losses = [1.0 + i / 100 for i in range(40)] + [50.0]
    shown = curves.frame(losses, [3.0])
    assert shown[1] < 3.0
    told = curves.outside(shown, losses, {"base": 3.0})
    assert told == "1 point lies outside the frame. The base row (3.0000) lies outside the frame."


def test_a_near_reference_is_inside():
    low, high = curves.frame([1.0, 2.0], [2.5])
    assert low < 1.0 and high > 2.5


def test_a_single_value_has_a_frame():
    assert curves.frame([1.0], []) == (0.95, 1.05)


def test_thinning_keeps_both_ends():
    rows = [{"step": step} for step in range(1000)]
    thinned = curves.thinned(rows, 20)
    assert len(thinned) == 20 and thinned[0] == rows[0] and thinned[-1] == rows[-1]


def test_nothing_to_draw_is_explained(make_study):
    study = load(make_study(trials=[], default=None))
    assert curves.history(study).why_not and curves.curves(study).why_not


def test_repeats_are_no_other_trials(study_folder):
    write_repeat(study_folder, 3, 1, 1.5)
    found = curves.curves(load(study_folder))
    assert "confirm-0003-1" not in [line.name for line in found.lines] and found.repeats == 1
    assert min(found.losses) == 1.75, "that of the winner, no repeat's"
    assert "1 training with other seeds not drawn." in captions.learning(compute(load(study_folder)))
