"""The loss by one setting, by learning rate of each rank or method, and through all settings."""

import math

import pytest
from matplotlib.figure import Figure

from lora_core.records import load_study, load_trial, save_study, save_trial
from reports import captions, edges, health, panels_html, panels_png, parallel, slices
from reports.content import compute
from reports.panels import Panel, Series
from reports.study import load
from tests.reports.helpers import AXES, RANK, RATE, RATIO

METHOD = "train_type"


def test_learning_rates_by_rank(study_folder):
    found = slices.rates(load(study_folder))
    assert {rate.group: len(rate.points) for rate in found.groups} == {
        "rank 4": 1,
        "rank 8": 2,
        "rank 16": 3,
        "rank 32": 2,
    }
    assert found.best == {"rank 16": 4e-4}
    assert found.caption.endswith(
        "Best learning rate by rank: rank 16: 0.0004. "
        "Too few trials to tell the best learning rate of rank 4, rank 8 and rank 32."
    )


def test_the_valley_holds_the_best_of_each_part(make_study):
    """Six parts from 1e-4 to 6.4e-3, each twice as high as the one before."""
    rates = [1e-4, 1.5e-4, 2.5e-4, 6.4e-3]
    losses = [3.0, 2.0, 2.5, 4.0]
    rows = [(8, 2.0, rate, loss, "complete", None) for rate, loss in zip(rates, losses, strict=True)]
    (rate,) = slices.rates(load(make_study(trials=rows))).groups
    assert [(point.at, point.loss) for point in rate.valley] == [(1.5e-4, 2.0), (2.5e-4, 2.5), (6.4e-3, 4.0)]


def test_too_few_rates_are_not_drawn(make_study):
    rows = [(8, 2.0, 1e-4, 2.0, "complete", None), (8, 2.0, 2e-4, 2.1, "complete", None)]
    assert "fewer than three" in slices.rates(load(make_study(trials=rows))).why_not


def test_slices_place_choices_by_their_order(study_folder):
    rank, ratio, rate = slices.slices(load(study_folder)).each
    assert (rank.key, ratio.key, rate.key) == (RANK, RATIO, RATE)
    assert rank.ticks == {0.0: "4", 1.0: "8", 2.0: "16", 3.0: "32"} and not rank.log
    assert (rank.points[0].name, rank.points[0].at, rank.points[0].loss) == ("trial-0003", 3.0, 1.75)
    assert (ratio.ticks, ratio.log, ratio.points[0].at) == ({}, True, 2.0)


def test_a_setting_that_did_not_vary_is_left_out(make_study):
    rows = [(8, 2.0, 1e-4, 2.0, "complete", None), (8, 2.0, 2e-4, 2.1, "complete", None)]
    assert [each.key for each in slices.slices(load(make_study(trials=rows))).each] == [RATE]


def test_parallel_lines_run_from_lowest_to_highest(study_folder):
    found = slices.slices(load(study_folder))
    (panel,) = parallel.panels(found, {RANK: "rank"}, "trial-0003")
    others, quarter, winner = panel.series
    assert (len(others.x) // 4, len(quarter.x) // 4) == (6, 1)
    rate = round(math.log(5e-4 / 1e-4) / math.log(8e-4 / 1e-4), 4)
    assert winner.y == [1.0, round(2 / 3, 4), rate, None]
    assert panel.ticks[0.0] == "rank\n4 –\n32"


@pytest.fixture
def methods(make_study):
    """LoRA, rsLoRA, full and DoRA, of which the best is full and has neither rank nor α/r."""
    rows = [(8, 2.0, 1e-4, 2.5, "complete", None), (16, 2.0, 2e-4, 2.25, "complete", None)]
    rows += [(4, 2.0, 1e-5, 1.5, "complete", None), (32, 4.0, 4e-4, 2.0, "complete", None)]
    folder = make_study(trials=rows, axes=[{"key": METHOD, "choices": ["lora", "dora", "full"]}, *AXES])
    for number, method in enumerate(("lora", "lora", "full", "dora")):
        trial = load_trial(folder / f"trial-{number:04d}")
        trial.params[METHOD] = trial.config[METHOD] = method
        if number == 1:
            trial.config["lora_parameters"]["scaling"] = "alpha_over_sqrt_r"
        if method == "full":
            del trial.params[RANK], trial.params[RATIO]
        save_trial(folder / trial.name, trial)
    record = load_study(folder)
    record.config["search"] = {"when": {RANK: "train_type=lora,dora", RATIO: "train_type=lora,dora"}}
    save_study(folder, record)
    return load(folder)


def test_a_trial_is_drawn_only_by_the_settings_it_has(methods):
    shown = {each.key: {point.name for point in each.points} for each in slices.slices(methods).each}
    adapters = {"trial-0000", "trial-0001", "trial-0003"}
    assert shown == {
        METHOD: adapters | {"trial-0002"},
        RANK: adapters,
        RATIO: adapters,
        RATE: adapters | {"trial-0002"},
    }
    panels = slices.slice_panels(slices.slices(methods), {}, "trial-0002")
    assert [panel.series[1].labels for panel in panels] == [["trial-0002"], [], [], ["trial-0002"]]


def test_its_line_through_all_settings_ends_where_it_has_no_more(methods):
    (panel,) = parallel.panels(slices.slices(methods), {}, "trial-0002")
    assert [text.partition("\n")[0] for text in panel.ticks.values()] == [METHOD, RATE, RANK, RATIO]
    assert panel.series[-1].y == [1.0, 0.0, None, None, None]


def test_learning_rates_by_method_where_methods_were_searched(methods):
    found = slices.rates(methods)
    assert (found.by, [rate.group for rate in found.groups]) == ("method", ["dora", "full", "lora", "rslora"])
    assert found.best == {} and found.caption.endswith(
        "Too few trials to tell the best learning rate of dora, full, lora and rslora."
    )


def test_nothing_is_said_of_a_rank_that_the_winner_does_not_have(methods):
    assert health.rank(methods) == [], "each method has one rank"
    assert RANK not in [each.key for each in edges.edges(methods)]
    methods.record.config["search"]["when"] = {}
    assert RANK in [each.key for each in edges.edges(methods)]


def test_captions_say_what_is_not_counted(methods):
    assert "over the 2 settings that all trials have" in health.few_trials(methods)[0].text
    told = captions.captions(compute(methods))
    assert "Trials without a setting are not drawn there." in told["slices"]
    assert "A line ends where its trial lacks a setting." in told["parallel"]
    assert "★" not in told["heatmap"], "the winner has no rank"


def test_captions_of_trials_that_have_every_setting(study_folder):
    told = captions.captions(compute(load(study_folder)))
    assert "1 pruned trial is not counted." in told["importance"]
    assert "★ marks the cell of the winner." in told["heatmap"] and "a setting" not in told["slices"] + told["parallel"]
    assert "over 3 searched settings." in health.few_trials(load(study_folder))[0].text


@pytest.mark.parametrize(("low", "shown"), [(1e-4, [1e-4, 2e-4, 5e-4, 1e-3]), (1e-6, [1e-6, 1e-5, 1e-4, 1e-3])])
def test_rates_on_a_log_scale_have_room(low, shown):
    axes = Figure().add_subplot()
    panel = Panel("rate", "loss", [Series("completed", [low, 1e-3], [1.0, 2.0], "trial")], log_x=True)
    panels_png._draw(axes, panel)
    (page,) = panels_html.figures({"rates": [panel]}).values()
    assert page["layout"]["xaxis"]["dtick"] == ("D2" if 2e-4 in shown else 1)
    assert [at for at in axes.get_xticks() if 0.99 * low < at < 1.01e-3] == pytest.approx(shown)
