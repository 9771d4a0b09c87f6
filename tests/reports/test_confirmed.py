"""A study whose best trials were trained again, and one with a test set: numbers and sentences, to the digit."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import reports
from lora_core.records import load_trial, save_trial
from reports import answer, sentences
from reports.study import load
from reports.tables import leaderboard
from tests.reports.helpers import write_repeat

CONFIG = {"search": {"confirm": {"k": 3, "repeats": 3}}}
# The three best by their own seed have 1.75, 1.8125 and 1.875.
REPEATS = {3: [2.0, 2.25, 2.0], 8: [1.75, 1.8125, 1.875], 5: [2.5, 2.5, 2.625]}
SPLITS = {"path": "builtin:demo", "rows": {"train": 200, "valid": 40, "test": 30}}


def repeated(make_study: Any, repeats: dict[int, list[float]] = REPEATS, **more: Any) -> Path:
    folder = make_study(**{"config": CONFIG} | more)
    for number, losses in repeats.items():
        for repeat, loss in enumerate(losses, 1):
            write_repeat(folder, number, repeat, loss)
    return folder


def test_the_best_mean_wins_also_over_the_best_trial(make_study):
    """trial-0008: mean of 1.8125, 1.75, 1.8125 and 1.875; trial-0003: of 1.75, 2, 2.25 and 2."""
    found = answer.compute(load(repeated(make_study)))
    assert [(each.name, each.mean, each.n) for each in found.finalists] == [
        ("trial-0008", 1.8125, 4), ("trial-0003", 2.0, 4), ("trial-0005", 2.375, 4),
    ]  # fmt: skip
    assert (found.winner.name, found.winner.loss, found.own_loss) == ("trial-0008", 1.8125, 1.8125)
    assert [(row.name, row.behind) for row in found.runners_up] == [("trial-0003", 0.1875), ("trial-0005", 0.5625)]
    assert (found.gain("base").nats, found.gain("default").nats) == (3.5 - 1.8125, 2.1875 - 1.8125)
    assert "trial-0008/adapters" in found.command


def test_sentences_quote_mean_spread_and_noise(make_study):
    """Spreads: √(0.0078125/3) = 0.0510 and √(0.125/3) = 0.2041. trial-0003 differs from the winner by −0.0625, 0.25,
    0.4375 and 0.125: 0.1875, with a spread of √(0.1328125/3) = 0.2104, and so ± 3.1824 · 0.2104 / 2."""
    found = answer.compute(load(repeated(make_study)))
    assert sentences.headline(found) == "trial-0008 wins with a mean validation loss of 1.8125 over 4 seeds"
    over, rule = "over 4 pairs of the same seed, ahead in", "95 % interval of Student's paired t-test"
    assert sentences.confirmation(found) == [
        "Its losses spread by 0.0510 (standard deviation, n = 4).",
        "Its lead over trial-0003 (mean 2.0000, standard deviation 0.2041, n = 4) is 0.1875 ± 0.3348 "
        f"{over} 3: within the noise ({rule}).",
        "Its lead over trial-0005 (mean 2.3750, standard deviation 0.3385, n = 4) is 0.5625 ± 0.5325 "
        f"{over} 4: larger than the noise ({rule}).",
        "The adapter kept is that of its own seed, with a validation loss of 1.8125.",
        "The default settings were trained with that seed only, and lie 0.3750 above it there.",
    ]
    assert not any("One seed" in sentence for sentence in sentences.body(found))


def test_files_carry_the_numbers(make_study):
    out = reports.build(repeated(make_study)).parent
    rows = {row["name"]: row for row in csv.DictReader((out / "trials.csv").open())}
    assert (rows["trial-0003"]["mean_val_loss"], rows["trial-0003"]["seeds"]) == ("2.0", "4")
    assert float(rows["trial-0003"]["sd_val_loss"]) == pytest.approx((0.125 / 3) ** 0.5)
    assert (rows["trial-0009"]["mean_val_loss"], rows["trial-0009"]["seeds"]) == ("", "")
    again = rows["confirm-0008-2"]
    assert (again["role"], again["repeat"], again["best_val_loss"]) == ("confirm", "2", "1.8125")
    told = json.loads((out / "report.json").read_text())["answer"]
    assert told["finalists"][1]["losses"] == {"0": 1.75, "1": 2.0, "2": 2.25, "3": 2.0}
    assert [lead["beyond_noise"] for lead in told["leads"]] == [False, True]
    for file in ("report.html", "report.md"):
        text = (out / file).read_text()
        assert all(told in text for told in ("0.0510", "+0.1875 ± 0.3348", "larger than the noise"))
        assert "Runners-up" not in text


def test_a_single_finalist_has_spread_and_no_lead(make_study):
    folder = make_study(config={"search": {"confirm": {"k": 1, "repeats": 2}}})
    for repeat, loss in enumerate((2.0, 2.25), 1):
        write_repeat(folder, 3, repeat, loss)
    found = answer.compute(load(folder))
    assert (found.winner.loss, found.leads, found.runners_up) == (2.0, [], [])
    said = sentences.body(found)
    assert said[2] == "Its losses spread by 0.2500 (standard deviation, n = 3)."
    assert not any("no runner-up" in sentence for sentence in said)


def test_the_leaderboard_marks_the_winner_wherever_it_stands(make_study):
    rows = leaderboard(load(repeated(make_study)))
    assert [(row.name, row.rank) for row in rows if row.wins] == [("trial-0008", 2)]


def test_one_missing_repeat_and_nothing_is_confirmed(make_study):
    folder = repeated(make_study, REPEATS | {5: [2.5, 2.5]}, state="interrupted")
    found = answer.compute(load(folder))
    assert (found.winner.name, found.finalists, found.confirming) == ("trial-0003", [], (8, 9))
    assert sentences.confirmation(found) == ["8 of 9 trainings with other seeds have ended: nothing is confirmed yet."]
    write_repeat(folder, 5, 3, None, state="running")
    assert answer.compute(load(folder)).finalists == []


def test_settings_that_fail_with_some_seed_do_not_win(make_study):
    folder = repeated(make_study, REPEATS | {8: [1.75, 1.8125]})
    write_repeat(folder, 8, 3, None, state="failed")
    found = answer.compute(load(folder))
    assert [(each.name, each.failed) for each in found.finalists][::2] == [("trial-0003", 0), ("trial-0008", 1)]
    behind = sentences.confirmation(found)[2]
    assert behind == (
        "It is 0.2083 behind trial-0008 (mean 1.7917, standard deviation 0.0361, n = 3, 1 repeat failed), "
        "which comes after it for what failed."
    )


def sized(folder: Path, sizes: dict[int, int]) -> answer.Answer:
    for number, size in sizes.items():
        record = load_trial(folder / f"trial-{number:04d}")
        record.metrics["trainable_params"] = size
        save_trial(folder / record.name, record)
    return answer.compute(load(folder))


def test_the_cheapest_within_the_noise(make_study):
    """trial-0005 is smaller still, and its loss higher by more than the noise."""
    found = sized(repeated(make_study), {8: 800, 3: 400, 5: 200})
    assert found.cheapest == answer.Cheapest("trial-0003", 400, 800, 0.1875)
    folder = repeated(make_study, REPEATS | {8: [1.75, 1.8125]}, name="failing")
    write_repeat(folder, 8, 3, None, state="failed")
    assert sized(folder, {8: 400, 3: 800}).cheapest is None  # it comes after the winner for what failed


def test_one_that_is_smaller_but_worse(make_study):
    """trial-0005 has 1.875 with its own seed, the winner 1.8125; trial-0003 is within the noise, but larger."""
    sizes = {number: 28_320_768 for number in range(10)}
    found = sized(repeated(make_study), sizes | {5: 651_264, 9: 400, 8: 28_320_769})
    assert (found.cheapest.name, found.smaller) == ("trial-0003", None)
    found = sized(repeated(make_study, name="noise"), sizes | {5: 651_264, 9: 400})
    assert found.smaller == answer.Cheapest("trial-0005", 651_264, 28_320_768, 0.0625)
    said = (
        "Smaller, but worse, is trial-0005: 651,264 trainable parameters, against 28.3M, and a loss higher by 0.0625 "
        "with the seed of the search."
    )
    assert said in sentences.body(found)
    found = sized(repeated(make_study, name="alike"), sizes | {5: 14_160_385})
    assert found.smaller is None and not any("Smaller" in each for each in sentences.body(found))


def test_a_finalist_with_its_own_loss_only(make_study):
    folder = repeated(make_study, {3: [2.0], 8: [1.75]}, config={"search": {"confirm": {"k": 3, "repeats": 1}}})
    write_repeat(folder, 5, 1, None, state="failed")
    assert sentences.confirmation(answer.compute(load(folder)))[2] == (
        "Its lead over trial-0005 (mean 1.8750, n = 1, 1 repeat failed) is 0.0625 with the one seed that both have: no "
        "spread known."
    )


def test_a_new_best_that_was_not_trained_again_does_not_win_on_its_own(make_study):
    """More trials after confirming: the old finalists stay, the new one is to be confirmed first."""
    folder = repeated(make_study, {number: REPEATS[number] for number in (8, 5)})
    write_repeat(folder, 9, 1, 1.5)
    assert answer.compute(load(folder)).confirming == (6, 9)
    for repeat, loss in enumerate(REPEATS[3], 1):
        write_repeat(folder, 3, repeat, loss)
    names = [each.name for each in answer.compute(load(folder)).finalists]
    assert names == ["trial-0009", "trial-0008", "trial-0003", "trial-0005"]


def scored(folder: Path, losses: dict[str, float]) -> answer.Answer:
    for name, loss in losses.items():
        record = load_trial(folder / name)
        record.metrics["test_loss"] = loss
        save_trial(folder / name, record)
    return answer.compute(load(folder))


def test_the_answer_quotes_the_test_set(make_study):
    folder = make_study(data=SPLITS)
    found = scored(folder, {"base": 3.75, "default": 2.5, "trial-0003": 1.875})
    assert sentences.test_set(found) == (
        "On the test set: 1.8750, 1.8750 nats per token (50.00 %) below the base model (3.7500) and 0.6250 nats per "
        "token (25.00 %) below the default settings (2.5000)."
    )
    out = reports.build(folder).parent
    rows = {row["name"]: row for row in csv.DictReader((out / "trials.csv").open())}
    assert (rows["trial-0003"]["test_loss"], rows["trial-0001"]["test_loss"]) == ("1.875", "")
    assert json.loads((out / "report.json").read_text())["answer"]["test"]["gains"][1]["percent"] == 25.0


def test_a_winner_that_is_worse_on_the_test_set(make_study):
    found = scored(make_study(data=SPLITS), {"base": 1.5, "trial-0003": 1.875})
    assert sentences.test_set(found) == (
        "On the test set: 1.8750, 0.3750 nats per token (25.00 %) above the base model (1.5000)."
    )


def test_a_test_set_that_was_not_scored(make_study):
    assert "was not scored" in sentences.test_set(answer.compute(load(make_study(data=SPLITS))))
    running = answer.compute(load(make_study("other", data=SPLITS, state="running")))
    assert sentences.test_set(running) == "The test set is scored at the end."


def test_the_test_set_decides_nothing(make_study):
    folder = repeated(make_study, data=SPLITS)
    before = answer.compute(load(folder))
    after = scored(folder, {"base": 0.5, "default": 0.5, "trial-0003": 0.1, "trial-0005": 0.1, "trial-0008": 9.0})
    assert (after.winner, after.runners_up, after.leads) == (before.winner, before.runners_up, before.leads)
    assert after.test.loss == 9.0
    assert sentences.test_set(after).endswith(
        " trial-0003 (0.1000) and trial-0005 (0.1000) are lower there; the winner was chosen on the validation rows."
    )
