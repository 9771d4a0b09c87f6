"""`lora-sweep generate` and `compare`: the base model's answers and the adapters', side by side."""

import json
import shutil
from pathlib import Path

import mlx_lm
import pytest

from sweeps.answering import _block
from sweeps.cli import main
from tests.sweeps.helpers import Place

PROMPT = "7+1="


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with a finished search `s` of two trials, of which the answers differ."""
    place = Place(tmp_path_factory.mktemp("answering"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reports.writer.build", lambda folder: folder / "report.html")
        assert main(place.search_arguments("n_trials=2")) == 0
    return place


def ask(place: Place, command: str, *words: str) -> int:
    return main([command, *words, "--max-tokens", "8", "--output-dir", str(place.root / "outputs")])


def stock(place: Place, adapter: str | None) -> str:
    """What mlx_lm itself answers."""
    model, tokenizer, *_ = mlx_lm.load(place.record().model["folder"], adapter_path=adapter)
    tokens = tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}], add_generation_prompt=True)
    return mlx_lm.generate(model, tokenizer, tokens, max_tokens=8)


def test_answers_are_those_of_mlx_lm(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    trials = place.trials()
    found = {"base": stock(place, None), **{trial.name: stock(place, trial.adapter) for trial in trials}}
    assert len(set(found.values())) > 1
    prompts = place.root / "prompts"
    prompts.write_text(f"{PROMPT}\n\nAnother one.\n")
    capsys.readouterr()
    assert ask(place, "compare", "s", "0", "trial-0001", "--prompts", str(prompts)) == 0
    first, second = capsys.readouterr().out.split("\n\nAnother one.\n")
    assert first == _block(PROMPT, found)
    assert [line.split()[0] for line in second.splitlines() if line[2] != " "] == list(found)

    assert ask(place, "generate", "s", PROMPT, "--trial", "1") == 0
    assert capsys.readouterr().out.rstrip("\n") == _block(PROMPT, {k: found[k] for k in ("base", "trial-0001")})


def test_an_answer_of_several_lines() -> None:
    assert _block("p", {"base": "a\nb", "trial-0001": ""}) == "p\n  base        a\n              b\n  trial-0001  "


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["generate", "t", PROMPT], "No study 't'"),
        (["generate", "s", PROMPT, "--trial", "7"], "s has no trial '7'. With an adapter: default, trial-0000"),
        (["generate", "s", PROMPT, "--trial", "trail-0001"], "Did you mean trial-0001"),
        (["generate", "s", PROMPT, "--trial", "base"], "base of s has no adapter"),
        (["compare", "s", "0", "--prompts", "nowhere"], "--prompts nowhere cannot be read"),
        (["compare", "s", "0", "--prompts", "/dev/null"], "holds no prompts"),
    ],
)
def test_refused(argv: list[str], said: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(place, *argv) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) <= 3


def test_a_quantised_base_that_is_gone_is_made_again(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_SWEEP_CACHE", str(tmp_path))
    assert main(["train", *place.arguments("study=few", "quantization=4bit", "num_layers=1", "trainer.iters=1")]) == 0
    shutil.rmtree(place.record("train/few").model["folder"])
    capsys.readouterr()
    assert ask(place, "generate", "train/few", PROMPT) == 0
    assert "few" in capsys.readouterr().out


def test_another_base_model_is_refused(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The base model of the study is not what it was."""
    file = place.folder() / "study.json"
    before = json.loads(file.read_text())
    shutil.copytree(before["model"]["folder"], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "rope_theta": 500.0}))
    file.write_text(json.dumps({**before, "model": {**before["model"], "folder": str(tmp_path / "model")}}))
    try:
        assert ask(place, "generate", "s", PROMPT) == 2
        assert "The study was trained on another base model" in capsys.readouterr().err
    finally:
        file.write_text(json.dumps(before))
