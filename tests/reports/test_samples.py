"""Sample answers in the files of a report; without them there is no such section."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

import reports
from lora_core.records import write_json
from reports import samples, sentences
from reports.samples import Row, Samples, visible

HOSTILE = "<script>alert(1)</script>|`x`\n<b>"
FOUND = Samples(
    48,
    3,
    {"base": None, "default": "a", "trial-0003": "b"},
    [
        Row("1+1=", "2.", {"base": "One and one is", "default": "3.", "trial-0003": "2."}),
        Row(HOSTILE, HOSTILE, {"base": "", "default": HOSTILE, "trial-0003": HOSTILE}),
    ],
)


def report(folder: Path, found: Samples) -> Path:
    write_json(folder / samples.FILE, asdict(found))
    return reports.build(folder).parent


def test_what_was_answered_stands_side_by_side(study_folder: Path) -> None:
    out = report(study_folder, FOUND)
    assert json.loads((out / "report.json").read_text())["samples"] == asdict(FOUND)
    told = "✓): 0 of the base model, 1 of the default settings and 2 of trial-0003."
    assert sentences.samples(FOUND).endswith(told)
    for file in ("report.html", "report.md"):
        text = (out / file).read_text()
        assert "Sample answers" in text and told in text and "<script>alert" not in text and "<b>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;|`x`\n&lt;b&gt;" in (out / "report.html").read_text()
    rows = (out / "report.md").read_text().split("| | 1+1= |\n|---|---|\n")[1].splitlines()
    assert "| base model | – |" in (out / "report.md").read_text()
    assert rows[:4] == [
        "| expected | 2. |",
        "| base model | One and one is |",
        "| default settings | 3. |",
        "| trial-0003 ✓ | 2. |",
    ]


def test_without_them_there_is_no_section(study_folder: Path) -> None:
    out = reports.build(study_folder).parent
    assert "Sample answers" not in (out / "report.html").read_text() + (out / "report.md").read_text()


@pytest.mark.parametrize("content", ["no json", "[]", '{"rows": 3}', '{"max_tokens": 48, "adapters": {}, "rows": []}'])
def test_a_file_that_cannot_be_read_is_named(study_folder: Path, content: str) -> None:
    (study_folder / samples.FILE).write_text(content)
    out = reports.build(study_folder).parent
    for file in ("report.html", "report.md"):
        text = (out / file).read_text()
        assert "Sample answers" in text and "Not shown: samples.json is damaged or of another version." in text


def test_characters_that_command_are_shown_and_others_left() -> None:
    assert visible("\x00\x1b[31mred\u202e") == "\\x00\\x1b[31mred\\u202e"
    assert visible("two\nlines\tהלו 👩\u200d🚀 é") == "two\nlines\tהלו 👩\u200d🚀 é"
