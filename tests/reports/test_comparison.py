"""Several studies side by side, to the digit."""

import csv
import json
import re
import time

import pytest

from lora_core.records import load_study, load_trial, save_study, save_trial, write_json
from reports import comparison, comparison_budget, comparison_panels, comparison_sentences, samples
from reports.comparison import Asked
from reports.comparison_budget import Budget, Reached
from reports.study import load
from reports.writer import compare
from tests.reports.helpers import AXES, RANK, RATE, TRIALS, write_repeat
from tests.reports.test_adapter import ONE, write_adapter

SHORT = [(8, 2.0, 1e-4, 2.5, "complete", None), (16, 2.0, 3e-4, 1.875, "complete", None)]


@pytest.fixture
def folders(make_study):
    """The recorded study, and one of two trials with another space."""
    space = [f"{RANK}=8,16", f"{RATE}=tag(log,interval(1e-05,0.001))"]
    return [make_study("long"), make_study("short", trials=SHORT, axes=[AXES[2]], space=space, n_trials=2)]


@pytest.fixture
def found(folders):
    return comparison.compute([load(folder) for folder in folders])


def test_best_so_far_counts_what_was_spent(found):
    """The pruned trial took 20 steps, the failed one 10."""
    assert found.members[0].best[:6] == [
        Reached(1, 40, 2.25), Reached(2, 80, 2.0), Reached(3, 100, 2.0), Reached(4, 140, 1.75), Reached(5, 150, 1.75),
        Reached(6, 190, 1.75),
    ]  # fmt: skip


def test_trials_count_from_when_they_ended(make_study):
    """The second of two that ran at the same time ended first."""
    folder = make_study(trials=SHORT)
    for name, ended in (("trial-0000", "2026-01-01T00:00:09+00:00"), ("trial-0001", "2026-01-01T00:00:05+00:00")):
        record = load_trial(folder / name)
        record.ended = ended
        save_trial(folder / name, record)
    assert [each.loss for each in comparison_budget.reached(load(folder))] == [1.875, 1.875]


def test_what_all_had_reached_at_the_same_budget(found):
    """After two trials the short study was ahead, though the long one won."""
    assert found.budgets == [
        Budget("trials", 2, {"long": 2.0, "short": 1.875}),
        Budget("steps", 80, {"long": 2.0, "short": 1.875}),
    ]
    assert [member.study for member in found.ranked] == ["long", "short"]


def test_only_what_differs_is_listed(found):
    assert found.differing == {
        f"axis {RANK}": ["4,8,16,32", "8,16"],
        "axis lora_parameters.scale_ratio": ["tag(log,interval(0.5,8))", "–"],
        f"axis {RATE}": ["–", "tag(log,interval(1e-05,0.001))"],
    }
    assert found.unlike == []


def test_the_sentences(found):
    assert comparison_sentences.headline(found) == "long has the lowest loss, 1.7500 over 1 seed (trial-0003)"
    assert comparison_sentences.body(found) == [
        "short is 0.1250 nats per token behind (7.14 %): 1.8750 over 1 seed (trial-0001).",
        "The winners share no seeds to compare them by, so whether the lead is noise is not known.",
        "After 2 trials, the most that all have, the best so far: short 1.8750 and long 2.0000.",
        "After 80 optimizer steps, the most that all have, the best so far: short 1.8750 and long 2.0000.",
    ]


def test_the_best_of_all_studies(found, folders):
    assert [(each.study, each.trial, each.loss) for each in found.leaders[:4]] == [
        ("long", "trial-0003", 1.75), ("long", "trial-0008", 1.8125), ("long", "trial-0005", 1.875),
        ("short", "trial-0001", 1.875),
    ]  # fmt: skip
    assert found.leaders[3].settings == "learning_rate 0.0003, rank 16, scale_ratio 2"
    assert len(found.leaders) == 10, "eight and two have completed"
    record = load_study(folders[1])
    record.data["fingerprint"] = "other"
    save_study(folders[1], record)
    unlike = comparison.compute([load(folder) for folder in folders])
    assert unlike.leaders == []
    assert comparison_sentences.captions(unlike)["leaders"] == "No ranking: the losses cannot be compared."


def test_settings_of_all_studies_in_one_figure(found):
    """The short study has searched the learning rate alone."""
    panels = {panel.x: panel for panel in comparison_panels.panels(found)["slices"]}
    rates, ranks = panels["learning_rate"], panels["rank"]
    assert [one.name for one in rates.series] == ["long", "short"] and rates.log_x and not rates.ticks
    assert (rates.series[1].x, rates.series[1].y) == ([3e-4, 1e-4], [1.875, 2.5])
    assert [one.name for one in ranks.series] == ["long"] and [*ranks.ticks.values()] == ["4", "8", "16", "32"]


def test_a_choice_here_and_a_range_there_are_two_figures(make_study):
    axes = [{**AXES[2], "choices": [1e-4, 3e-4]}]
    studies = [load(make_study("range")), load(make_study("choice", trials=SHORT, axes=axes))]
    panels = comparison_panels.panels(comparison.compute(studies))["slices"]
    assert [[one.name for one in panel.series] for panel in panels if panel.x == "learning_rate"] == [
        ["range"], ["choice"],
    ]  # fmt: skip


def test_choices_of_all_studies_stand_in_order(make_study):
    axes = [[{**axis, "choices": choices} for axis in AXES if axis["key"] == RANK] for choices in ([8, 32], [4, 8, 16])]
    row = (2.0, 1e-4, 2.0, "complete", None)
    trials = [[(rank, *row) for rank in ranks] for ranks in ((8, 32), (4, 16))]
    studies = [load(make_study(name, trials=trials[i], axes=axes[i])) for i, name in enumerate(("one", "two"))]
    (panel,) = comparison_panels.panels(comparison.compute(studies))["slices"]
    assert [*panel.ticks.values()] == ["4", "8", "16", "32"]
    assert [sorted(one.x) for one in panel.series] == [[1.0, 3.0], [0.0, 2.0]]


def test_seeds_of_all_studies_in_one_figure(make_study):
    confirm = {"config": {"search": {"confirm": {"k": 1, "repeats": 2}}}}
    studies = [make_study("single", trials=SHORT), make_study("several", trials=SHORT, **confirm)]
    for repeat, loss in ((1, 2.0), (2, 1.75)):
        write_repeat(studies[1], 1, repeat, loss)
    found = comparison.compute([load(folder) for folder in studies])
    (panel,) = comparison_panels.panels(found)["noise"]
    ((name, x, y),) = [(one.name, one.x, one.y) for one in panel.series]
    assert (name, x, sorted(y)) == ("several", [0.0] * 3, [1.75, 1.875, 2.0]) and panel.ticks == {0.0: "trial-0001"}
    caption = comparison_sentences.captions(found)["noise"]
    assert caption.endswith("sample: several trial-0001 1.8750 ± 0.1250 (n = 3).")


def test_answers_of_the_winners_side_by_side(folders):
    assert comparison.compute([load(folder) for folder in folders]).asked == []
    for folder, winner in zip(folders, ("trial-0003", "trial-0001"), strict=True):
        own = {"prompt": winner, "expected": "", "answers": {}}
        shared = {"prompt": "How?", "expected": "So.", "answers": {"base": "What?", winner: f"So says {winner}."}}
        told = {"max_tokens": 8, "wanted": 2, "adapters": {}, "rows": [own, shared]}
        write_json(folder / samples.FILE, told)
    found = comparison.compute([load(folder) for folder in folders])
    answers = {"base": "What?", "long": "So says trial-0003.", "short": "So says trial-0001."}
    assert found.asked == [Asked("How?", "So.", answers)]


def test_a_random_search_is_called_one(folders):
    record = load_study(folders[1])
    record.sampler = "RandomSampler"
    save_study(folders[1], record)
    found = comparison.compute([load(folder) for folder in folders])
    told = comparison_sentences.body(found)[-1]
    assert told.endswith("the best so far: short (RandomSampler) 1.8750 and long (TPESampler) 2.0000.")


def test_other_data_cannot_be_compared(folders):
    record = load_study(folders[1])
    record.data["fingerprint"], record.state = "other", "running"
    save_study(folders[1], record)
    found = comparison.compute([load(folder) for folder in folders])
    told = comparison_sentences.body(found)
    assert told[0] == "short is running, so this is partial: 2 of 2 trials ended."
    assert told[1:] == ["The losses cannot be compared: the studies differ in the data."]
    assert comparison_sentences.headline(found) == "These studies cannot be ranked"
    assert found.differing["data contents"] == ["–", "other"]


def test_winners_with_several_seeds_are_tested_against_each_other(make_study):
    confirm = {"config": {"search": {"confirm": {"k": 1, "repeats": 2}}}}
    one = make_study("one", trials=SHORT, n_trials=2, **confirm)
    two = make_study("two", trials=TRIALS[:2], n_trials=2, **confirm)
    for folder, losses in ((one, (1.875, 1.875)), (two, (2.0, 2.5))):
        for repeat, loss in enumerate(losses, 1):
            write_repeat(folder, 1, repeat, loss)
    found = comparison.compute([load(one), load(two)])
    assert found.lead is not None and found.lead.nats == pytest.approx(13 / 6 - 1.875)
    assert comparison_sentences.body(found)[1].startswith("The lead over two is 0.2917 ± 0.7171 over 3 pairs of")
    record = load_study(two)
    record.config["seed"] = 1
    save_study(two, record)
    found = comparison.compute([load(one), load(two)])
    assert found.lead is None and "share no seeds" in comparison_sentences.body(found)[1]


def test_a_single_seed_is_told_from_a_mean(make_study):
    confirm = {"config": {"search": {"confirm": {"k": 1, "repeats": 2}}}}
    one, several = make_study("one", trials=SHORT, n_trials=2), make_study("several", trials=SHORT, **confirm)
    for repeat in (1, 2):
        write_repeat(several, 1, repeat, 2.25)
    found = comparison.compute([load(one), load(several)])
    assert comparison_sentences.headline(found) == "one has the lowest loss, 1.8750 over 1 seed (trial-0001)"
    told = comparison_sentences.body(found)
    assert told[0].endswith("behind (13.33 %): 2.1250 over 3 seeds (trial-0001).") and "tends to be too low" in told[1]
    assert comparison_sentences.rows(found)["seeds"] == ["1", "3"]
    alike = comparison.compute([load(several), load(several)])
    assert not any("too low" in each for each in comparison_sentences.body(alike))


def test_a_study_without_a_winner_is_no_obstacle(make_study):
    found = comparison.compute([load(make_study("one")), load(make_study("none", trials=[]))])
    assert found.budgets == [] and found.members[1].best == []
    assert comparison_sentences.rows(found)["winner"] == ["trial-0003", "–"]


def test_each_study_has_its_colour_and_mark(found):
    for name, panels in comparison_panels.panels(found).items():
        for panel in panels if name not in (*MAPS, "parallel") else []:
            looks = {series.name: (series.colour, series.symbol) for series in panel.series}
            assert looks.get("long") in (("group0", "circle"), None)
            assert looks.get("short") in (("group1", "square"), None)


MAPS = ("heatmap", "rate_map", "adapter")


def test_heat_maps_of_all_studies_share_their_colours(found):
    maps = comparison_panels.panels(found)["heatmap"]
    assert [(one.title, one.colour, one.scale) for one in maps] == [
        ("long", "group0", (2.5, 1.78125)), ("short", "group1", (2.5, 1.78125)),
    ]  # fmt: skip
    assert comparison_sentences.captions(found)["heatmap"].endswith(
        "One colour scale for all. long: 8 completed trials, 9 of 16 cells without one; ★ marks the cell of the "
        "winner. short: 2 completed trials, 14 of 16 cells without one; ★ marks the cell of the winner."
    )


def test_losses_that_cannot_be_compared_share_no_colours(folders):
    record = load_study(folders[1])
    record.data["fingerprint"] = "other"
    save_study(folders[1], record)
    found = comparison.compute([load(folder) for folder in folders])
    assert [one.scale for one in comparison_panels.panels(found)["heatmap"]] == [(2.1875, 1.78125), (2.5, 1.875)]
    assert "Each study has its own colour scale." in comparison_sentences.captions(found)["heatmap"]


def test_where_the_winners_were_changed(folders):
    """The winner of the short study has adapters in block 3 only."""
    assert "adapter" not in comparison_panels.panels(comparison.compute([load(folder) for folder in folders]))
    write_adapter(folders[0] / "trial-0003" / "adapters", {(2, "q"): (ONE, [[1.0]]), (3, "q"): (ONE, [[0.0]])})
    write_adapter(folders[1] / "trial-0001" / "adapters", {(3, "q"): (ONE, [[0.0, 2.0]])})
    found = comparison.compute([load(folder) for folder in folders])
    drawn = comparison_panels.panels(found)["adapter"]
    assert [(one.title, one.values, one.scale) for one in drawn] == [
        ("long", [[10.0, 0.0]], (0.0, 20.0)), ("short", [[None, 20.0]], (0.0, 20.0)),
    ]  # fmt: skip
    told = comparison_sentences.captions(found)["adapter"]
    assert "Below 0.001 of the median: 1 layer (q in block 3). short: ‖ΔW‖" in told
    assert told.endswith("No layer is below 0.001 of the median.")


def test_lines_through_what_all_have_searched(make_study, found):
    """Two studies with the same axes; the ends of each are those of both together."""
    assert "parallel" not in comparison_panels.panels(found), "the short study has searched one setting"
    assert comparison_sentences.captions(found)["parallel"].startswith("Not drawn")
    rows = [(64, 4.0, 1e-4, 1.5, "complete", None), (16, 2.0, 1e-2, 2.5, "complete", None)]
    axes = [{**AXES[0], "choices": [16, 64]}, *AXES[1:]]
    studies = [load(make_study("here")), load(make_study("there", trials=rows, axes=axes))]
    (panel,) = comparison_panels.panels(comparison.compute(studies))["parallel"]
    assert [(one.name, one.colour, one.line, len(one.x) // 4) for one in panel.series] == [
        ("", "group0", 0.9, 7), ("here", "group0", 4.0, 1), ("", "group1", 0.9, 1), ("there", "group1", 4.0, 1),
    ]  # fmt: skip
    assert panel.ticks[0.0] == "rank\n4 –\n64" and panel.ticks[2.0] == "learning_rate\n0.0001 –\n0.01"
    assert panel.series[1].y == [0.75, round(2 / 3, 4), 0.3495, None] and panel.series[3].y == [1.0, 1.0, 0.0, None]


def test_the_importance_of_a_setting_stands_at_its_place(found):
    (panel,) = comparison_panels.panels(found)["importance"]
    shares = found.members[0].importance.shares
    (series,) = panel.series
    assert (series.name, series.y) == ("long", [*shares.values()]), "two trials are too few for the other study"
    assert [panel.ticks[at] for at in series.x] == [key.rpartition(".")[2] for key in shares]
    assert "rank" in panel.ticks.values() and series.y == sorted(series.y, reverse=True)


def test_the_files(folders, tmp_path):
    compare(folders, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["budgets"][0]["reached"] == {"long": 2.0, "short": 1.875}
    rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").open()))
    assert [sum(row["study"] == name for row in rows) for name in ("long", "short")] == [12, 4]
    assert [each["heatmap"]["scale"] for each in told["members"]] == [[2.5, 1.78125]] * 2
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## Where they differ" in text and "](figures/rate_map.png)" in text
    for name in re.findall(r"\]\((figures/.*?)\)", text):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    long, _, short = text.partition("## Health checks")[2].partition("### short")
    assert "8 trials completed over 3 searched settings" in long and "1 of 10 trials failed" in long
    assert "trials completed over" not in short and "trials failed" not in short


def test_two_large_studies_are_compared_soon(make_study, tmp_path):
    rows = [
        (2 ** (2 + i % 4), 0.5 + i / 40, 10 ** (-5 + i / 125), 2 - (i * 37 % 250) / 1000, "complete", None)
        for i in range(250)
    ]
    folders, began = [make_study(name, trials=rows, n_trials=250) for name in ("one", "two")], time.process_time()
    page = compare(folders, tmp_path / "out")
    assert time.process_time() - began < 10 and page.stat().st_size < 8_000_000
