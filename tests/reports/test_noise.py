"""The figure of the repeats: every loss, mean and spread where they belong."""

import json

import pytest

import reports
from reports import noise
from reports.study import load
from tests.reports.test_build import embedded
from tests.reports.test_confirmed import repeated

# √(0.0078125/3), √(0.125/3), √(0.34375/3)
SPREADS = {"trial-0008": 0.0510, "trial-0003": 0.2041, "trial-0005": 0.3385}
MEANS = {"trial-0008": 1.8125, "trial-0003": 2.0, "trial-0005": 2.375}


def test_the_figure_has_every_seed_its_means_and_spreads(make_study):
    found = noise.compute(load(repeated(make_study)))
    (panel,) = noise.panels(found)
    assert list(panel.ticks.values()) == list(MEANS)
    series = {each.name: each for each in panel.series}
    assert series["its own seed"].y == [1.8125, 1.75, 1.875]
    assert series["other seeds"].y == [1.75, 1.8125, 1.875, 2.0, 2.25, 2.0, 2.5, 2.5, 2.625]
    assert [round(x) for x in series["other seeds"].x] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    pairs = series["same seed"].y
    assert pairs == [1.8125, 1.75, 1.875, None, 1.75, 2.0, 2.5, None, 1.8125, 2.25, 2.5, None, 1.875, 2.0, 2.625, None]
    crosses = [y for y in series["mean ± standard deviation"].y if y is not None]
    ends = [(MEANS[name], MEANS[name], MEANS[name] - SPREADS[name], MEANS[name] + SPREADS[name]) for name in MEANS]
    assert crosses == pytest.approx([y for cross in ends for y in cross], abs=1e-4)
    assert (series["default settings"].y, series["base model"].y) == ([2.1875] * 2, [3.5] * 2)
    assert found.caption.endswith("trial-0005 2.3750 ± 0.3385 (n = 4).")
    assert all(found.frame[0] < y < found.frame[1] for each in panel.series for y in each.y if y is not None)


def test_a_base_model_far_above_presses_nothing_into_a_line(make_study):
    found = noise.compute(load(repeated(make_study, {number: [1.75, 1.8125, 1.875] for number in (3, 8, 5)})))
    assert "base model" not in [each.name for each in noise.panels(found)[0].series]
    assert found.frame[1] < 2.0 and "The base row (3.5000) lies outside the frame." in found.caption


def test_it_is_in_every_file(make_study):
    out = reports.build(repeated(make_study)).parent
    assert "noise-0" in embedded((out / "report.html").read_text())
    assert "![" in (out / "report.md").read_text() and (out / "figures" / "noise.png").stat().st_size > 1000
    told = json.loads((out / "report.json").read_text())["noise"]
    assert [each["mean"] for each in told["finalists"]] == list(MEANS.values())


def test_why_it_is_not_drawn(make_study, study_folder):
    assert noise.compute(load(study_folder)).why_not == "Not drawn: every setting was trained with one seed."
    halfway = noise.compute(load(repeated(make_study, {8: [1.75]}, name="halfway", state="interrupted")))
    assert halfway.why_not == "Not drawn: 1 of 9 trainings with other seeds have ended."
