"""The README's table of what goes with what, cell by cell: on the tiny model, over the bits themselves as on a GPU."""

import re
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from lora_core import models, saved
from lora_core.config import TrainConfig
from lora_core.engine import Engine
from lora_core.errors import UserError
from lora_core.models import loading
from lora_core.records import load_trial
from sweeps import export
from tests.lora_core.helpers import demo, losses, new_spec, run

README = (Path(__file__).parents[1] / "README.md").read_text()
HEADER = "| training | base | trains | packed | resumes | merges | in mlx_lm | in PEFT |"
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {}, "rsLoRA": {"scaling": "alpha_over_sqrt_r"}, "DoRA": {"train_type": "dora"},
    "full": {"train_type": "full", "num_layers": 1},
}  # fmt: skip
TOKENS = [[1, 20, 30, 40, 50, 250], [7, 8, 9, 200, 100, 0]]


class Made:
    """Two trials of one combination, side by side, or why there are none."""

    def __init__(self, kind: str, bits: str | None, folder: Path) -> None:
        self.folder = folder
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(loading, "_to_train_dtype", lambda *_: [])
            base = models.load("builtin:tiny", bits)
        data = demo()
        self.data = replace(data, train=data.train[:8], valid=data.valid[:2])
        self.engine = Engine(base, self.data, 2)
        self.settings = {"rank": 4, "iters": 2, "eval_every": 2, "learning_rate": 2e-2, **KINDS[kind]}
        self.spec, self.other = self.new("one"), self.new("two", learning_rate=1e-2)
        self.refused = None
        try:
            for spec in (self.spec, self.other):
                self.engine.start(spec)
        except UserError as error:
            self.refused = str(error)
            return
        self.packs = {id(pack) for _, pack, _ in self.engine.running}
        run(self.engine)
        self.loss = load_trial(Path(self.spec.folder)).metrics["best_val_loss"]

    def new(self, name: str, **changes: Any):
        return new_spec(self.folder, name, **{**self.settings, **changes})

    @property
    def adapters(self) -> Path:
        return Path(self.spec.folder) / "adapters"

    @property
    def base(self) -> str:
        return self.engine.base.info.folder

    def merged(self) -> Path:
        folder = self.folder / "merged"
        if not folder.exists():
            saved.fuse(self.engine, self.adapters, TrainConfig.from_dict(self.spec.config), folder)
        return folder


def logits(folder: str | Path, adapter: Path | None = None) -> np.ndarray:
    return np.array(mlx_lm.load(str(folder), adapter_path=adapter and str(adapter))[0](mx.array(TOKENS)))


def trains(made: Made) -> bool:
    if made.refused:
        assert "which no gradient step can change" in made.refused
        return False
    assert made.loss < losses(made.spec)[0][1] - 0.01
    return True


def packed(made: Made) -> bool:
    if len(made.packs) == 2:
        return False
    for spec, alone in ((made.spec, made.new("alone")), (made.other, made.new("other", learning_rate=1e-2))):
        run(made.engine, alone)
        assert losses(alone)[-1] == pytest.approx(losses(spec)[-1], rel=1e-5)
    return True


def resumes(made: Made) -> bool:
    again = made.new("again", resume_adapter_file=str(made.adapters))
    run(made.engine, again)
    assert losses(again)[0][1] == pytest.approx(made.loss, rel=1e-5)
    return True


def merges(made: Made) -> bool:
    merged = Engine(models.load(str(made.merged())), made.data, 1)
    loss = saved.score(merged, TrainConfig.from_dict(made.spec.config), None, "valid")
    assert loss == pytest.approx(made.loss, rel=1e-4)
    return True


def in_mlx_lm(made: Made) -> bool:
    try:
        found = logits(made.base, made.adapters)
    except ValueError as error:
        assert "incompatible" in str(error)
        return False
    np.testing.assert_allclose(found, logits(made.merged()), rtol=0, atol=1e-3)
    assert np.abs(found - logits(made.base)).max() > 1e-2
    return True


def in_peft(made: Made) -> bool:
    folder, said = made.folder / "peft", StringIO()
    try:
        with redirect_stdout(said):
            export.main([str(made.adapters), "--format", "peft", "--out", str(folder)])
    except UserError as error:
        assert "weights of the model itself" in str(error)
        return False
    if "quantised in MLX's own way" in said.getvalue():
        return False
    from tests.lora_core.test_against_peft import logits as theirs

    np.testing.assert_allclose(theirs(made.base, folder), logits(made.base, made.adapters), rtol=0, atol=1e-4)
    return True


CHECKS = {
    "trains": trains, "packed": packed, "resumes": resumes, "merges": merges, "in mlx_lm": in_mlx_lm,
    "in PEFT": in_peft,
}  # fmt: skip


def cells() -> list[Any]:
    """Every combination and column of the table, with what it says there."""
    found = []
    rows = README.partition(HEADER)[2].partition("\n\n")[0].strip().splitlines()[1:]
    for kinds, bases, *said in ([cell.strip() for cell in row.strip("|").split("|")] for row in rows):
        for kind in kinds.split(", "):
            for base in bases.split(", "):
                for column, cell in zip(CHECKS, said, strict=True):
                    marks = [pytest.mark.peft] if (column, cell) == ("in PEFT", "yes") else []
                    found.append(pytest.param(kind, base, column, cell, marks=marks, id=f"{kind}-{base}-{column}"))
    return found


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Made]:
    """Each combination is trained once."""

    @cache
    def made(kind: str, base: str) -> Made:
        return Made(kind, None if base == "as it is" else base, tmp_path_factory.mktemp("made"))

    return made


@pytest.mark.parametrize(("kind", "base", "column", "said"), cells())
def test_a_cell(kind: str, base: str, column: str, said: str, make: Callable[[str, str], Made]) -> None:
    made = make(kind, base)
    holds = trains(made) if made.refused else CHECKS[column](made)
    assert holds == (said == "yes")


def test_the_table_is_whole_and_each_no_has_its_reason() -> None:
    found = {(kind, base) for kind, base, *_ in (cell.values for cell in cells())}
    assert found == {(kind, base) for kind in KINDS for base in ("as it is", "4bit", "6bit", "8bit", "mxfp4")}
    for cell in cells():
        said = cell.values[3]
        assert said == "yes" or re.search(rf"^{said.removeprefix('no ')} [A-Z]", README, re.MULTILINE), said
