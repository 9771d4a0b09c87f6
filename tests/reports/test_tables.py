"""The leaderboard's order and numbers, failures, and how to reproduce."""

from dataclasses import replace

from lora_core.records import load_trial, save_trial
from reports import tables
from reports.reproduce import changed, flat, reproduce
from reports.study import load, short_names
from tests.reports.helpers import RANK, RATIO, write_repeat


def test_reference_rows_first_then_by_loss_then_the_unfinished(study_folder):
    rows = tables.leaderboard(load(study_folder))
    assert [row.name for row in rows] == [
        "base", "default", "trial-0003", "trial-0008", "trial-0005", "trial-0009", "trial-0001", "trial-0007",
        "trial-0006", "trial-0000", "trial-0002", "trial-0004",
    ]  # fmt: skip
    assert [row.rank for row in rows] == [None, None, 1, 2, 3, 4, 5, 6, 7, 8, None, None]


def test_gain_is_against_the_base(study_folder):
    base, default, first, *_ = tables.leaderboard(load(study_folder))
    assert base.gain_nats is None
    assert (default.gain_nats, default.gain_percent) == (1.3125, 37.5)
    assert (first.gain_nats, first.gain_percent) == (1.75, 50.0)


def test_the_default_row_shows_its_derived_ratio(study_folder):
    base, default, *_ = tables.leaderboard(load(study_folder))
    assert default.params[RANK] == 8 and default.params[RATIO] == 2.5
    assert base.params[RANK] is None


def test_rows_lead_to_their_runs(make_study):
    link = "http://127.0.0.1:5000/#/experiments/3/runs?workflowType=machine_learning"
    tracked = {"tracking": {"link": link, "experiment_id": "3"}, "runs": {"trial-0003": "abc"}}
    runs = {row.name: row.run for row in tables.leaderboard(load(make_study(**tracked)))}
    assert runs["trial-0003"] == "http://127.0.0.1:5000/#/experiments/3/runs/abc?workflowType=machine_learning"
    assert runs["base"] is None
    tracked["tracking"]["link"] = "javascript:alert(1)/#/"
    assert not any(row.run for row in tables.leaderboard(load(make_study("other", **tracked))))


def test_trials_that_have_not_ended_say_how_far_they_came(make_study):
    folder = make_study(state="running", trials=[(8, 2.0, 1e-4, None, "running", None)], default=None)
    write_repeat(folder, 0, 1, None, state="running")
    for name in ("trial-0000", "confirm-0000-1"):
        save_trial(folder / name, replace(load_trial(folder / name), step=0))  # as it is until a trial ends
    study = load(folder)
    told = {row.name: (row.state, row.steps) for row in tables.leaderboard(study)}
    assert told == {"base": ("complete", 0), "trial-0000": ("running", 40), "confirm-0000-1": ("running", 40)}
    study.record.state = "interrupted"
    frame = tables.trials_frame(study, tables.leaderboard(study))
    assert list(frame["state"]) == ["complete", "interrupted", "interrupted"]
    assert list(frame["steps"]) == ["0", "40", "40"]


def test_failures_name_their_reason(study_folder):
    (failure,) = tables.failures(load(study_folder))
    assert (failure.name, failure.reason, failure.steps) == ("trial-0004", "diverged", 10)


def test_done_again_under_another_name_as_commands_are_typed_here(study_folder, monkeypatch):
    record = load(study_folder).record
    assert reproduce(record).command == "lora-sweep search study=demo-again"
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    record.command, record.resume_command = "uv run lora-sweep search warm.study=demo", "lora-sweep search study=demo"
    found = reproduce(record)
    assert found.command == "uv run lora-sweep search warm.study=demo"  # which names itself
    assert found.resume_command == "uv run lora-sweep search study=demo"
    record.command = ""
    assert reproduce(record).command == ""


def test_reproduce_lists_rows_and_versions(study_folder):
    found = reproduce(load(study_folder).record)
    assert found.subject == "builtin:tiny on builtin:demo (200 train and 40 valid rows)"
    assert found.facts["Data rows"] == "train 200 rows (9,000 tokens in the loss); valid 40 rows"
    assert found.environment == {"device": "cpu", "versions.mlx": "0.32.4", "versions.optuna": "5.0.0"}
    assert flat({"a": {"b": None, "c": True}}) == {"a.c": "true"}


def test_settings_other_than_the_defaults():
    assert changed({"trainer": {"iters": 16, "epochs": None}, "num_layers": "all", "study": "x"}) == {
        "trainer.iters": "16",
        "num_layers": "all",
    }
    assert changed({}) == {}


def test_short_names_stay_apart():
    assert short_names(["a.rank", "b.rank", "c.rate"]) == {
        "a.rank": "a.rank",
        "b.rank": "b.rank",
        "c.rate": "rate",
    }
