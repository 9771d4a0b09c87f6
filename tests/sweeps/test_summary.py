"""The closing lines of a search: what is in them, and that one screen shows them."""

from pathlib import Path

import pytest

from lora_core.records import load_study, load_trial, save_study, save_trial
from sweeps.links import study_link
from sweeps.summary import search_summary
from tests.reports.helpers import write_repeat, write_study

ROWS, COLUMNS = 24, 80
NAME = "lora-20261124-002324"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study with all there is to say of one: confirmed, scored on a test set, pruned, with a report."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    confirm = {"output_dir": "outputs", "search": {"confirm": {"k": 3, "repeats": 3}}}
    rows = {"path": "builtin:demo", "rows": {"train": 200, "valid": 40, "test": 40}}
    folder = write_study(tmp_path / "outputs", NAME, config=confirm, data=rows)
    for number, losses in {3: [1.75, 1.8125, 1.75], 8: [2.0, 2.25, 2.0], 5: [2.5, 2.5, 2.625]}.items():
        for repeat, loss in enumerate(losses, 1):
            write_repeat(folder, number, repeat, loss)
    for name, loss in {"base": 3.75, "default": 2.5, "trial-0003": 1.875}.items():
        record = load_trial(folder / name)
        record.metrics["test_loss"] = loss
        save_trial(folder / name, record)
    study = load_study(folder)
    study.model["folder"] = "/home/somebody/.cache/lora-sweep/models/SmolLM2-135M-Instruct.Q4_1"
    study.tracking = {"uri": "sqlite:///mlflow.db", "link": study_link("http://127.0.0.1:5000", "1", NAME)}
    save_study(folder, study)
    (folder / "report").mkdir()
    (folder / "report" / "report.html").touch()
    return folder


def test_all_that_one_asks_for_fits_a_screen(folder: Path) -> None:
    text, found = search_summary(folder)
    lines = text.replace(str(folder.parents[1]), "/home/somebody/my-experiments").splitlines()
    assert found and lines[1:] == [
        "trial-0003 wins with a mean validation loss of 1.7656 over 4 seeds",
        "  rank 32, scale_ratio 2, learning_rate 0.0005",
        "  That is 1.7344 nats per token (49.55 %) below the base model (3.5000).",
        "  That is 0.4219 nats per token (19.29 %) below the default settings (2.1875).",
        "  Its losses spread by 0.0312 (standard deviation, n = 4).",
        "  It leads trial-0008 by 0.2500 ± 0.2436 over 4 pairs: larger than the noise.",
        "  The adapter kept is that of its own seed, with a validation loss of 1.7500.",
        "  On the test set: 1.8750, 1.8750 nats per token (50.00 %) below the base model (3.7500) and 0.6250 nats per "
        "token (25.00 %) below the default settings (2.5000).",
        "  Pruning saved 20 of 400 optimizer steps (5.00 %).",
        "  10 of 10 trials ended: 8 complete, 1 pruned and 1 failed. Training took 0 s.",
        f"Adapter outputs/{NAME}/trial-0003/adapters",
        f"Report  outputs/{NAME}/report/report.html",
        f"MLflow  {study_link('http://127.0.0.1:5000', '1', NAME)}",
        f"  (uv run lora-sweep ui {NAME} serves it, unless a server does)",
        "Use it",
        "  uv run mlx_lm.generate --model /home/somebody/.cache/lora-sweep/models/SmolLM2-135M-Instruct.Q4_1 "
        f'--adapter-path /home/somebody/my-experiments/outputs/{NAME}/trial-0003/adapters --prompt "…"',
        f"  uv run lora-sweep generate {NAME} '…'",
        f"  uv run lora-sweep report {NAME}",
    ]
    told = lines[1:]  # the empty line above may scroll away
    assert sum(-(-len(line) // COLUMNS) for line in told) < ROWS


def test_an_adapter_that_mlx_lm_cannot_load_is_used_by_this_program(folder: Path) -> None:
    study, trial = load_study(folder), load_trial(folder / "trial-0003")
    study.model["bits"], trial.config["train_type"] = 6, "dora"
    save_study(folder, study)
    save_trial(folder / "trial-0003", trial)
    text, _ = search_summary(folder)
    assert "mlx_lm.generate" not in text and f"lora-sweep generate {NAME}" in text


def test_commands_say_where_the_study_lies(folder: Path) -> None:
    study = load_study(folder)
    study.config["output_dir"] = "elsewhere"
    study.tracking["uri"] = "sqlite:////other/mlflow.db"
    save_study(folder, study)
    text, _ = search_summary(folder)
    assert f"lora-sweep report {NAME} --output-dir {folder.parent}" in text
    assert f"lora-sweep ui {NAME} --uri sqlite:////other/mlflow.db" in text


def test_without_other_seeds_the_next_one_is_named(tmp_path: Path) -> None:
    text, _ = search_summary(write_study(tmp_path, "s"))
    assert "  One seed per point: no spread known yet. Next is trial-0008, 0.0625 behind.\n" in text


def test_no_winner(tmp_path: Path) -> None:
    text, found = search_summary(write_study(tmp_path, "s", trials=[(32, 8.0, 1e-3, None, "failed", "diverged")]))
    assert not found and text.startswith("\nNo winner\n  No trial has completed")
    assert "mlx_lm.generate" not in text and "Adapter" not in text
