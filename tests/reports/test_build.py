"""The files of a report: complete, consistent, offline, and safe with any text in them."""

import csv
import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

import reports
from lora_core.errors import UserError
from lora_core.records import load_study, load_trial, save_study, save_trial
from reports.writer import compare
from tests.reports.helpers import RANK, held

HOSTILE = "<script>alert(1)</script>|`x` </script>"


class Page(HTMLParser):
    """Collects scripts, what would be fetched, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts = 0
        self.fetched: list[str] = []
        self.text = ""
        self.sentences: list[str] = []  # of the answer
        self.answer = False
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.inside = tag if tag in ("script", "style") else self.inside
        self.answer = ("id", "answer") in attrs if tag == "section" else self.answer
        for name, value in attrs:
            if (name == "src" or (name == "href" and tag == "link")) and not value.startswith("data:"):
                self.fetched.append(value)

    def handle_endtag(self, tag):
        self.inside = "" if tag == self.inside else self.inside

    def handle_data(self, data):
        self.text += "" if self.inside else data
        if self.answer and not self.inside:
            self.sentences.append(data)


def embedded(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def test_all_files_are_there(study_folder):
    page = reports.build(study_folder)
    assert page == study_folder / "report" / "report.html"
    assert {path.name for path in page.parent.iterdir()} == {
        "report.html", "report.md", "report.json", "trials.csv", "figures",
    }  # fmt: skip
    assert page.stat().st_size < 8_000_000


def test_the_page_fetches_nothing(study_folder):
    text = reports.build(study_folder).read_text()
    page = Page(text)
    assert page.fetched == [] and text.count("plotly.js v") == 1
    assert "url(" not in text.split("<style>")[1].split("</style>")[0]
    assert "default-src 'none'" in text


def test_the_page_leads_with_the_answer(study_folder):
    text = " ".join(Page(reports.build(study_folder).read_text()).text.split())
    assert text.index("trial-0003 wins with a validation loss of 1.7500") < text.index("Leaderboard")
    assert "+50.00 %" in text and "+20.00 %" in text
    assert f"--adapter-path {study_folder}/trial-0003/adapters --prompt" in text


def test_figures_are_valid_plotly(study_folder):
    import plotly.graph_objects as go

    from reports.palette import LIGHT

    raw = json.dumps(embedded(reports.build(study_folder).read_text()))
    drawn = json.loads(re.sub(r"var\(--(\w+)\)", lambda found: LIGHT[found[1]], raw))
    assert set(drawn) == {
        "history", "importance", "rates-0", "slices-0", "slices-1", "slices-2", "heatmap-0", "rate_map-0", "parallel-0",
        "curves",
    }  # fmt: skip
    for figure in drawn.values():
        go.Figure(figure)


def test_csv_and_json_agree(study_folder):
    out = reports.build(study_folder).parent
    told = json.loads((out / "report.json").read_text())
    rows = {row["name"]: row for row in csv.DictReader((out / "trials.csv").open())}
    assert len(rows) == 12 and list(rows) == [row["name"] for row in told["leaderboard"]]
    for row in told["leaderboard"]:
        loss = row["metrics"]["best_val_loss"]
        assert rows[row["name"]]["best_val_loss"] == ("" if loss is None else repr(loss))
        assert rows[row["name"]]["state"] == row["state"]
    winner = told["answer"]["winner"]
    assert rows[winner["name"]]["place"] == "1" and rows[winner["name"]][RANK] == "32"
    assert told["answer"]["gains"][0]["percent"] == 50.0


def test_every_number_of_the_text_is_in_the_json(study_folder):
    """The text may round; what it rounds must be there."""
    out = reports.build(study_folder).parent
    told = json.loads((out / "report.json").read_text())
    known = [*numbers(told)]
    computed = [found["text"] for found in told["health"]["findings"]]
    texts = [*computed, *Page((out / "report.html").read_text()).sentences]
    quoted = [number for text in texts for number in re.findall(r"(?<![\w.-])\d+\.\d+(?![\w-])", text)]
    assert len(quoted) > 20 and not [number for number in quoted if not is_one_of(known, number)]
    assert not is_one_of(known, "1.2345")


def is_one_of(known, number):
    """Whether the text `number` is one of `known`, rounded, or in percent."""
    digits = len(number.partition(".")[2])
    return any(f"{abs(one):.{digits}f}" == number for each in known for one in (each, 100 * each))


def numbers(values):
    """Every number in plain JSON values."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            yield from numbers(value)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield values


def test_markdown_figures_exist(study_folder):
    out = reports.build(study_folder).parent
    linked = re.findall(r"!\[.*?\]\((.*?)\)", (out / "report.md").read_text())
    assert len(linked) == 8
    assert all((out / path).read_bytes().startswith(b"\x89PNG") for path in linked)


def test_names_and_settings_are_data(study_folder):
    study, trial = load_study(study_folder), load_trial(study_folder / "trial-0003")
    study.study, study.notes, trial.name = HOSTILE, [HOSTILE], HOSTILE.replace("/", "")
    trial.params["data.path"] = HOSTILE
    save_study(study_folder, study)
    save_trial(study_folder / "trial-0003", trial)
    page = reports.build(study_folder)
    plain = page.read_text()
    assert "<script>alert" not in plain and HOSTILE in Page(plain).text
    assert Page(plain).scripts == 4
    assert "<script>" not in (page.parent / "report.md").read_text().replace(f"study={HOSTILE}", "")
    assert json.loads((page.parent / "report.json").read_text())["study"] == HOSTILE


def test_a_study_without_completed_trials_builds(make_study):
    rows = [(8, 2.0, 1e-4, None, "failed", "out of memory"), (4, 2.0, 1e-4, None, "running", None)]
    folder = make_study(trials=rows, state="running", n_trials=8)
    with held(folder):
        out = reports.build(folder).parent
    text = (out / "report.md").read_text()
    assert "so this report is partial. 1 of 8 trials ended" in text
    assert "1 failed: out of memory" in text and "Not drawn: no trial has completed." in text
    assert text.count("To go on with the search, should it be interrupted:") == 1
    assert "1 of 2 trials failed" in text and "The other checks need a completed trial." in text


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_study_with_a_single_curve_builds(make_study):
    """As on a machine that trains for a study which another leads: it has neither reference row."""
    folder = make_study(trials=[(4, 2.0, 1e-4, None, "running", None)], default=None, state="running")
    shutil.rmtree(folder / "base")
    assert (reports.build(folder).parent / "figures" / "curves.png").exists()


def test_a_study_that_was_killed_is_not_said_to_run(make_study, tmp_path):
    folder, other = make_study(state="running", n_trials=32), make_study("other")
    with held(folder):
        assert "still running" in (reports.build(folder, formats=["md"])).read_text()
        assert "demo is running, so" in compare([folder, other], tmp_path / "out", ["md"]).read_text()
    text = reports.build(folder, formats=["md"]).read_text()
    assert "The search was interrupted, so this report is partial." in text and "still running" not in text
    assert "To go on with the search:" in text
    assert "demo is interrupted, so" in compare([folder, other], tmp_path / "out", ["md"]).read_text()


def test_a_study_whose_trials_were_all_pruned_builds(make_study):
    rows = [(8, 2.0, 1e-4, 2.5, "pruned", "behind the median at step 20")]
    text = (reports.build(make_study(trials=rows, state="interrupted")).parent / "report.md").read_text()
    assert "To go on with the search:" in text and "\nThe checks need a completed trial." in text


def test_a_study_without_any_trial_builds(tmp_path):
    from tests.reports.helpers import study_record

    folder = tmp_path / "outputs" / "empty"
    folder.mkdir(parents=True)
    save_study(folder, study_record("empty", state="running"))
    page = reports.build(folder)
    assert "There are no trials yet." in page.read_text()
    assert page.stat().st_size < 100_000, "no figure, no plotly"


def test_a_large_study_builds(make_study):
    rows = [
        (2 ** (2 + i % 4), 0.5 + i / 100, 10 ** (-5 + i / 250), 2 - (i * 37 % 500) / 1000, "complete", None)
        for i in range(500)
    ]
    folder, began = make_study(trials=rows, n_trials=500), time.process_time()
    page = reports.build(folder)
    assert time.process_time() - began < 10
    assert page.stat().st_size < 8_000_000
    assert "470 more rows in [trials.csv]" in (page.parent / "report.md").read_text()


def test_out_is_used_and_nothing_is_left_half_written(study_folder, tmp_path):
    page = reports.build(study_folder, tmp_path / "else")
    assert page == tmp_path / "else" / "report.html" and not (study_folder / "report").exists()
    assert not list(page.parent.rglob("*.part"))


def test_an_out_that_cannot_be_a_folder(study_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        reports.build(study_folder, tmp_path / "file")


def test_no_study(tmp_path):
    with pytest.raises(UserError, match="no such study"):
        reports.build(Path(tmp_path))
