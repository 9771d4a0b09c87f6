"""History and learning curves as numbers."""

from reports import captions, curves
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
    assert min(found.losses) > 1.75, "the best curve is the lowest"
    assert "1 training with other seeds not drawn." in captions.learning(compute(load(study_folder)))
