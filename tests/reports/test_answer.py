"""The numbers of the answer, to the digit."""

import math
import shutil
from pathlib import Path

import pytest

from lora_core.records import load_trial, save_trial
from reports import answer, sentences
from reports.study import load
from reports.wording import typed
from tests.reports.helpers import TRIALS, write_repeat


def test_winner_and_gains(study_folder):
    found = answer.compute(load(study_folder))
    assert (found.winner.name, found.winner.loss, found.winner.behind) == ("trial-0003", 1.75, 0.0)
    assert found.winner.perplexity == math.exp(1.75)
    base, default = found.gain("base"), found.gain("default")
    assert (base.loss, base.nats, base.percent) == (3.5, 1.75, 50.0)
    assert (default.loss, default.nats, default.percent) == (2.1875, 0.4375, 20.0)
    assert [(row.name, row.behind) for row in found.runners_up] == [
        ("trial-0008", 0.0625),
        ("trial-0005", 0.125),
        ("trial-0009", 0.1875),
    ]
    assert found.counts == answer.Counts(planned=10, ended=10, complete=8, pruned=1, failed=1, running=0)


def test_sentences_quote_the_numbers(study_folder):
    found = answer.compute(load(study_folder))
    assert sentences.headline(found) == "trial-0003 wins with a validation loss of 1.7500"
    assert sentences.status(found) == "10 of 10 trials ended: 8 complete, 1 pruned and 1 failed."
    assert sentences.body(found) == [
        "That is 1.7500 nats per token (50.00 %) below the base model (3.5000, perplexity 33.12).",
        "That is 0.4375 nats per token (20.00 %) below the default settings (2.1875, perplexity 8.91).",
        "One seed per point: no spread known yet.",
        "There is no test set: the gains are those on the validation rows, which also chose the winner.",
        "Pruning saved 20 of 400 optimizer steps (5.00 %).",
    ]


def test_steps_saved_by_pruning(make_study):
    assert answer.compute(load(make_study())).savings == answer.Savings(20, 400)
    assert answer.compute(load(make_study("no-pruner", pruner="none"))).savings is None
    kept = answer.compute(load(make_study("kept", trials=TRIALS[:2])))
    assert "The pruner has stopped no trial." in sentences.body(kept)
    lost = answer.compute(load(make_study("lost", trials=TRIALS[2:3])))
    assert sentences.body(lost)[-1] == "Pruning saved 20 of 40 optimizer steps (50.00 %)."


def test_commands_are_typed_as_the_program_was_started(monkeypatch):
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    assert typed("lora-sweep ui") == "lora-sweep ui"
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert typed("lora-sweep ui") == "uv run lora-sweep ui"


def test_command_quotes_paths(study_folder):
    found = answer.compute(load(study_folder))
    adapter = study_folder / "trial-0003" / "adapters"
    assert found.command == (f"mlx_lm.generate --model '/models/tiny model' --adapter-path {adapter} --prompt \"…\"")


def test_what_mlx_lm_cannot_load_is_answered_with_merged(make_study):
    """Of adapters that is DoRA over 6 bits."""
    folder = make_study(config={"fuse": True})
    study = load(folder)
    study.record.model["bits"] = 6
    assert f"--adapter-path {folder}/trial-0003/adapters" in answer.compute(study).command
    study.winner.config["train_type"] = "dora"
    assert answer.compute(study).command is None
    (folder / "best").mkdir()
    assert answer.compute(study).command == f'mlx_lm.generate --model {folder}/best --prompt "…"'
    study.record.config["fuse"] = False  # it is that of an earlier winner
    assert answer.compute(study).command is None
    study.record.model["bits"] = 8
    assert "--adapter-path" in answer.compute(study).command


def test_a_copied_study_has_adapters_of_its_own(study_folder, tmp_path):
    (study_folder / "trial-0003" / "adapters").mkdir()
    copied = Path(shutil.copytree(study_folder, tmp_path / "elsewhere"))
    assert answer.compute(load(copied)).adapter == str(copied / "trial-0003" / "adapters")


def test_a_default_that_beats_the_search_is_said_plainly(make_study):
    found = answer.compute(load(make_study(default=1.4)))
    assert found.gain("default").nats == 1.4 - 1.75
    assert "above the default settings (1.4000" in sentences.body(found)[1]
    assert sentences.body(found)[1].endswith("no completed trial beats the default settings.")


def test_a_default_that_is_as_good_is_said_plainly(make_study):
    assert sentences.body(answer.compute(load(make_study(default=1.75))))[1] == (
        "That equals the default settings (1.7500, perplexity 5.75): the search has gained nothing."
    )


def test_other_objectives_are_named(make_study):
    told = sentences.body(answer.compute(load(make_study(objective="best_val_loss, adapter_mb"))))
    assert told[3] == "The loss alone decides; the trade-offs show what became of adapter_mb, to be lowered too."
    assert not any("decides" in each for each in sentences.body(answer.compute(load(make_study("plain")))))


def test_a_missing_default_is_said(make_study):
    found = answer.compute(load(make_study(default=None)))
    assert sentences.body(found)[1].startswith("No gain over the default settings can be given")


@pytest.mark.parametrize("state", ["pruned", "failed", "running"])
def test_only_completed_trials_win(study_folder, state):
    record = load_trial(study_folder / "trial-0003")
    record.state = state
    save_trial(study_folder / "trial-0003", record)
    assert answer.compute(load(study_folder)).winner.name == "trial-0008"


def test_a_loss_that_is_not_a_number_never_wins(study_folder):
    record = load_trial(study_folder / "trial-0003")
    record.metrics["best_val_loss"] = math.nan
    save_trial(study_folder / "trial-0003", record)
    assert answer.compute(load(study_folder)).winner.name == "trial-0008"


def test_without_a_completed_trial_the_reasons_are_given(make_study):
    rows = [(8, 2.0, 1e-4, None, "failed", "diverged")] * 2 + [(4, 2.0, 1e-4, 2.5, "pruned", "behind")]
    found = answer.compute(load(make_study(trials=rows)))
    assert found.winner is None and found.command is None
    assert sentences.headline(found) == "No winner"
    assert sentences.body(found) == [
        "No trial has completed, so there is nothing to rank. 2 failed: diverged; 1 pruned: behind.",
        "Pruning saved 20 of 120 optimizer steps (16.67 %).",
    ]


def test_a_partial_study_says_so(make_study):
    running = answer.compute(load(make_study(state="running", n_trials=32)))
    assert sentences.status(running).startswith("The search is still running, so this report is partial. 10 of 32")
    assert sentences.headline(running) == "trial-0003 leads with a validation loss of 1.7500"
    stopped = answer.compute(load(make_study("other", state="interrupted")))
    assert "was interrupted" in sentences.status(stopped)


def test_repeats_end_the_remark_on_seeds(study_folder):
    record = load_trial(study_folder / "trial-0003")
    record.repeat = 1
    save_trial(study_folder / "trial-0003", record)
    assert "several seeds" in sentences.confirmation(answer.compute(load(study_folder)))[0]


def test_how_to_find_out_whether_a_lead_is_noise(make_study):
    told = answer.compute(load(make_study())).confirm_command
    assert told == typed("lora-sweep search study=demo n_trials=10 search.confirm.k=3 search.confirm.repeats=2")
    assert answer.compute(load(make_study("running", state="running"))).confirm_command is None
    assert answer.compute(load(make_study("one", trials=TRIALS[:1]))).confirm_command is None, "it leads nobody"
    confirmed = make_study("confirmed", config={"search": {"confirm": {"k": 1, "repeats": 1}}})
    write_repeat(confirmed, 3, 1, 2.0)
    assert answer.compute(load(confirmed)).confirm_command is None
