"""`lora-sweep report`: which studies it finds, and what it says about those it does not."""

import pytest

from lora_core.errors import UserError
from reports.command import main


def test_reports_are_made_and_named(make_study, tmp_path, capsys):
    first, second = make_study("one"), make_study("two")
    assert main(["one", "two", "--output-dir", str(tmp_path / "outputs")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"Report: {first}/report/report.html",
        f"Report: {second}/report/report.html",
    ]


def test_several_studies_share_an_out(make_study, tmp_path):
    make_study("one"), make_study("two")
    out = tmp_path / "out"
    main(["one", "two", "--out", str(out), "--output-dir", str(tmp_path / "outputs")])
    assert (out / "one" / "report.html").exists() and (out / "two" / "report.html").exists()


def test_an_unknown_study_gets_near_matches(make_study, tmp_path):
    make_study("rank-study")
    with pytest.raises(UserError, match="Did you mean rank-study"):
        main(["rank-studi", "--output-dir", str(tmp_path / "outputs")])
    with pytest.raises(UserError, match="There: rank-study"):
        main(["zzz", "--output-dir", str(tmp_path / "outputs")])
    with pytest.raises(UserError, match="holds no studies"):
        main(["zzz", "--output-dir", str(tmp_path)])


@pytest.mark.parametrize("argv", [[], ["one", "--nonsense"]])
def test_bad_arguments_exit_2(argv, capsys):
    assert main(argv) == 2
    assert "usage: lora-sweep report" in capsys.readouterr().err
