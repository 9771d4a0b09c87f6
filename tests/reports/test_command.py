"""`lora-sweep report`: which studies it finds, and what it says about those it does not."""

import pytest

from lora_core.errors import UserError
from reports.command import main


def test_a_report_is_made_and_named(make_study, tmp_path, capsys):
    folder = make_study("one")
    assert main(["one", "--output-dir", str(tmp_path / "outputs")]) == 0
    assert capsys.readouterr().out == f"Report: {folder}/report/report.html\n"


def test_a_study_by_its_path(make_study, tmp_path, capsys, monkeypatch):
    make_study("one")
    monkeypatch.chdir(tmp_path)
    assert main(["outputs/one/", "--format", "json"]) == 0
    assert capsys.readouterr().out == "Report: outputs/one/report/report.json\n"


def test_several_studies_are_compared(make_study, tmp_path, capsys):
    make_study("one"), make_study("two")
    names = ["one", "two", "--output-dir", str(tmp_path / "outputs")]
    assert main(names) == 0 and main([*names, "--out", str(tmp_path / "out")]) == 0
    made = [tmp_path / "outputs" / "compared" / "report.html", tmp_path / "out" / "report.html"]
    assert capsys.readouterr().out.splitlines() == [f"Report: {path}" for path in made]
    assert all(path.exists() for path in made)


@pytest.mark.parametrize("studies", [["one"], ["one", "two"]])
def test_only_the_formats_asked_for(make_study, tmp_path, capsys, studies):
    for name in studies:
        make_study(name)
    out = tmp_path / "out"
    places = ["--out", str(out), "--output-dir", str(tmp_path / "outputs")]
    main([*studies, *places, "--format", "json,csv"])
    assert capsys.readouterr().out == f"Report: {out}/report.json\n"
    assert sorted(path.name for path in out.iterdir()) == ["report.json", "trials.csv"]


def test_an_unknown_format_is_refused(make_study, tmp_path):
    make_study("one")
    with pytest.raises(UserError, match="html,mdx: 'mdx' is none of html, md, csv, json"):
        main(["one", "--format", "html,mdx", "--output-dir", str(tmp_path / "outputs")])


def test_an_unknown_study_gets_near_matches(make_study, tmp_path):
    make_study("rank-study")
    with pytest.raises(UserError, match="Did you mean rank-study"):
        main(["rank-studi", "--output-dir", str(tmp_path / "outputs")])
    with pytest.raises(UserError, match="There: rank-study"):
        main(["zzz", "--output-dir", str(tmp_path / "outputs")])
    make_study("train/first")
    with pytest.raises(UserError, match=r"No training 'train/firts' in .*. Did you mean train/first"):
        main(["train/firts", "--output-dir", str(tmp_path / "outputs")])
    with pytest.raises(UserError, match="holds no studies"):
        main(["zzz", "--output-dir", str(tmp_path)])


@pytest.mark.parametrize("argv", [[], ["one", "--nonsense"]])
def test_bad_arguments_exit_2(argv, capsys):
    assert main(argv) == 2
    assert "usage: lora-sweep report" in capsys.readouterr().err
