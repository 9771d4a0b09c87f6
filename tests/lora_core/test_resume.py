"""What a trial starts from: the same ΔW, also at another rank or multiplier, or in other layers; what is refused."""

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lora_core.adapter_folder import read, save_peft
from lora_core.adapters import Draw, Site, initial
from lora_core.config import TrainConfig
from lora_core.engine import Engine
from lora_core.errors import UserError
from lora_core.layers import Weights
from lora_core.records import load_trial
from lora_core.resume import Start, resized
from lora_core.trial import TrialSpec
from tests.lora_core.helpers import bits_are_promised, losses, new_engine, new_spec, run

RANK = 4


@pytest.fixture(scope="module")
def engine() -> Engine:
    return new_engine()


@pytest.fixture(scope="module")
def saved(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Adapter folders by train_type, of rank 4 on two blocks."""
    folder = tmp_path_factory.mktemp("saved")
    specs = {kind: new_spec(folder, kind, train_type=kind, rank=RANK) for kind in ("lora", "dora", "full")}
    run(engine, *specs.values())
    return {kind: f"{spec.folder}/adapters" for kind, spec in specs.items()}


def fitting(folder: Path, path: str, **changes: Any) -> TrialSpec:
    given = {"rank": RANK, "resume_strict": False, **changes}
    return new_spec(folder, "-".join(map(str, changes.values())) or "as-it-is", resume_adapter_file=path, **given)


def start_of(engine: Engine, spec: TrialSpec) -> Start:
    start = engine._resumed(TrainConfig.from_dict(spec.config))
    assert start is not None
    return start


def fresh(site: Site, spec: TrialSpec) -> Weights:
    """What the trial would begin with otherwise."""
    config = TrainConfig.from_dict(spec.config)
    lora, dora = config.lora_parameters, config.train_type == "dora"
    return tuple(array[0, 0] for array in initial([site], [Draw(lora, 0, 0)], lora.rank, dora))


def deltas(engine: Engine, spec: TrialSpec) -> dict[int, np.ndarray]:
    """s·A·B by layer."""
    s = TrainConfig.from_dict(spec.config).lora_parameters.multiplier
    return {index: s * np.array(w[0] @ w[1]) for index, w in start_of(engine, spec).weights.items()}


def first_loss(engine: Engine, spec: TrialSpec) -> float:
    engine.start(spec)
    engine.stop(spec.name)
    return losses(spec)[0][1]


@bits_are_promised
def test_a_larger_rank_changes_no_bit_and_has_new_columns(engine: Engine, saved: dict, tmp_path: Path) -> None:
    same, larger = fitting(tmp_path, saved["lora"]), fitting(tmp_path, saved["lora"], rank=9, scale_ratio=5.0)
    s = [TrainConfig.from_dict(spec.config).lora_parameters for spec in (same, larger)]
    assert s[0].multiplier == s[1].multiplier
    assert first_loss(engine, larger) == first_loss(engine, same)
    start = start_of(engine, larger)
    for site in engine.sites:
        if site.index in start.weights:
            a, b = start.weights[site.index]
            assert mx.array_equal(a[:, RANK:], fresh(site, larger)[0][:, RANK:])
            assert not b[RANK:].any() and b[:RANK].any()
            # New columns that met anything but zeros would change something.
            assert mx.abs(a @ mx.maximum(b, 1e-3) - a @ b).max() > 1e-4


def test_a_smaller_rank_is_the_nearest_one() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(40, 8)).astype(np.float32), random.normal(size=(8, 24)).astype(np.float32)
    fresh = random.normal(size=(40, 3)).astype(np.float32)
    new_a, new_b, (lost, whole) = resized(a, b, fresh)
    u, s, v = np.linalg.svd(a @ b)
    np.testing.assert_allclose(new_a @ new_b, u[:, :3] * s[:3] @ v[:3], atol=1e-4)
    assert (lost, whole) == pytest.approx(((s[3:] ** 2).sum(), (s**2).sum()), rel=1e-4)
    assert lost == pytest.approx(np.square(a @ b - new_a @ new_b).sum(), rel=1e-4)
    assert lost < 0.8 * np.square(a @ b - a[:, :3] @ b[:3]).sum()  # the first columns are not the nearest
    np.testing.assert_allclose(new_a.T @ new_a, np.diag(s[:3]), atol=1e-3)
    np.testing.assert_allclose(new_b @ new_b.T, np.diag(s[:3]), atol=1e-3)


def test_what_would_be_zero_in_both_factors_begins_anew() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 40, 8)).astype(np.float32), np.zeros((2, 8, 24), np.float32)
    b[0, 0] = 1  # one singular value in the first expert, none in the second
    fresh = random.normal(size=(2, 40, 3)).astype(np.float32)
    new_a, new_b, (lost, whole) = resized(a, b, fresh)
    np.testing.assert_allclose(new_a @ new_b, a @ b, atol=1e-4)
    assert np.array_equal(new_a[0, :, 1:], fresh[0, :, 1:]) and np.array_equal(new_a[1], fresh[1])
    assert not new_b[0, 1:].any() and not new_b[1].any() and lost < 1e-9 * whole


def test_a_smaller_rank_says_and_records_what_it_costs(saved: dict, tmp_path: Path) -> None:
    engine = new_engine()
    same, smaller = fitting(tmp_path, saved["lora"]), fitting(tmp_path, saved["lora"], rank=1, scale_ratio=5.0)
    engine.check(TrainConfig.from_dict(same.config))
    assert not [note for note in engine.notes if "resume" in note]
    engine.check(TrainConfig.from_dict(smaller.config))
    whole, kept = deltas(engine, same), deltas(engine, smaller)
    lost = sum(np.square(whole[index] - kept[index]).sum() for index in whole)
    error = float(np.sqrt(lost / sum(np.square(each).sum() for each in whole.values())))
    assert 0.01 < error < 1
    assert engine.notes[-1].endswith(f"its rank 4 is cut to 1, which takes {100 * error:.2g} % of the size of ΔW.")
    records = run(engine, same, smaller)
    assert "resume_error" not in records[0].metrics
    assert records[1].metrics["resume_error"] == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("changes", [{"scale": 5.0}, {"scaling": "alpha_over_sqrt_r"}, {"rank": 8}])
def test_another_multiplier_keeps_the_change(
    engine: Engine, saved: dict, tmp_path: Path, changes: dict[str, Any]
) -> None:
    same, other = fitting(tmp_path, saved["lora"]), fitting(tmp_path, saved["lora"], **changes)
    whole, kept = deltas(engine, same), deltas(engine, other)
    assert all(np.allclose(kept[index], whole[index], rtol=0, atol=1e-6) for index in whole)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_what_fits_as_it_is_keeps_the_change_too_and_says_so(
    engine: Engine, saved: dict, tmp_path: Path, kind: str
) -> None:
    same, other = (
        fitting(tmp_path, saved[kind], train_type=kind, resume_strict=True, **more) for more in ({}, {"scale": 3.0})
    )
    whole, kept = deltas(engine, same), deltas(engine, other)
    assert all(np.allclose(kept[index], whole[index], rtol=0, atol=1e-6) and whole[index].any() for index in whole)
    assert first_loss(engine, other) == pytest.approx(first_loss(engine, same), abs=1e-5)
    assert start_of(engine, same).notes == []
    assert "multiplies B·A by 5, this run by 0.75" in start_of(engine, other).notes[0]


def test_what_multiplies_a_bare_file_is_said(engine: Engine, saved: dict, tmp_path: Path) -> None:
    file = shutil.copy(f"{saved['lora']}/adapters.safetensors", tmp_path)
    start = start_of(engine, fitting(tmp_path, str(file), resume_strict=True, scale=3.0))
    assert start.notes[0].endswith("has no adapter_config.json beside it: its B·A is multiplied by 0.75, as here.")
    stored = read(saved["lora"]).tensors
    assert any(np.array_equal(np.array(b), stored[name]) for _, b in start.weights.values() for name in stored)


def test_the_multiplier_of_peft_is_understood(engine: Engine, saved: dict, tmp_path: Path) -> None:
    ours = read(saved["lora"])
    config = {**ours.config, "lora_parameters": {"rank": RANK, "scale": 7.0}}
    save_peft(tmp_path / "peft", ours.tensors, config, "the base")
    whole = deltas(engine, fitting(tmp_path, saved["lora"]))
    kept = deltas(engine, fitting(tmp_path, f"{tmp_path}/peft", rank=8))
    factor = 7.0 / ours.config["lora_parameters"]["scale"]
    assert factor != 1 and all(np.allclose(kept[index], factor * whole[index], atol=1e-6) for index in whole)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_other_layers_begin_as_ever(saved: dict, tmp_path: Path, kind: str) -> None:
    engine = new_engine()
    same = fitting(tmp_path, saved[kind], train_type=kind)
    keys = ["self_attn.q_proj", "mlp.up_proj"]
    other = fitting(tmp_path, saved[kind], train_type=kind, num_layers=3, keys=keys)
    engine.check(TrainConfig.from_dict(other.config))
    new, left_out = engine.notes[-2:]
    assert new.endswith(
        "has nothing for 2 of this run, which begin as ever: "
        "model.layers.1.mlp.up_proj … model.layers.1.self_attn.q_proj"
    )
    assert "has 10 that this run leaves out: model.layers.2.mlp.down_proj … model.layers.3.self_attn.v_proj" in left_out
    whole, start = start_of(engine, same).weights, start_of(engine, other).weights
    for site in engine.sites:
        if site.index in start:
            expected = whole[site.index] if site.layer > 1 else fresh(site, other)
            assert all(map(mx.array_equal, start[site.index], expected))
    run(engine, other)
    assert load_trial(Path(other.folder)).state == "complete"


def test_dora_takes_its_lengths_over_and_makes_those_of_lora(engine: Engine, saved: dict, tmp_path: Path) -> None:
    strict = new_spec(tmp_path, "strict", train_type="dora", rank=RANK, resume_adapter_file=saved["dora"])
    larger = fitting(tmp_path, saved["dora"], train_type="dora", rank=8)
    assert first_loss(engine, larger) == pytest.approx(first_loss(engine, strict), rel=1e-6)
    from_lora, lora = fitting(tmp_path, saved["lora"], train_type="dora"), fitting(tmp_path, saved["lora"])
    assert first_loss(engine, from_lora) == pytest.approx(first_loss(engine, lora), rel=1e-6)
    anew = new_spec(tmp_path, "anew", train_type="dora", rank=RANK)
    assert first_loss(engine, anew) != pytest.approx(first_loss(engine, from_lora), rel=1e-3)


def test_whole_weights_of_other_blocks(saved: dict, tmp_path: Path) -> None:
    engine = new_engine()
    strict = new_spec(tmp_path, "strict", train_type="full", resume_adapter_file=saved["full"])
    deeper = fitting(tmp_path, saved["full"], train_type="full", num_layers=3)
    engine.check(TrainConfig.from_dict(deeper.config))
    assert "has nothing for 9 of this run" in engine.notes[-1]
    assert first_loss(engine, deeper) == pytest.approx(first_loss(engine, strict), rel=1e-6)


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("dora", {}, "made by train_type=dora, which train_type=lora has no form of"),
        ("full", {}, "made by train_type=full, which train_type=lora has no form of"),
        ("lora", {"train_type": "full"}, "has nothing of what is trained here"),
        ("lora", {"keys": ["no"]}, "matches no linear layer"),
    ],
)
def test_refused(engine: Engine, saved: dict, tmp_path: Path, file: str, changes: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        engine.check(TrainConfig.from_dict(fitting(tmp_path, saved[file], **changes).config))


def test_another_width_and_an_unknown_multiplier_are_refused(engine: Engine, tmp_path: Path) -> None:
    name = "model.layers.3.mlp.up_proj"
    sides = {"lora_a": (64, 2), "lora_b": (2, 256)}
    arrays = {f"{name}.{side}": mx.ones(shape) for side, shape in sides.items()}
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), arrays)
    config = TrainConfig.from_dict(fitting(tmp_path, str(tmp_path)).config)
    with pytest.raises(UserError, match=r"no adapter_config.json beside it"):
        engine.check(config)
    (tmp_path / "adapter_config.json").write_text('{"lora_parameters": {"scale": NaN, "rank": 2}}')
    with pytest.raises(UserError, match=r"resume_adapter_file=.*scale NaN, expected a finite number"):
        engine.check(config)
    (tmp_path / "adapter_config.json").write_text('{"lora_parameters": {"scale": 2.0, "rank": 2}}')
    with pytest.raises(UserError, match=rf"{name} is 64 × 256, expected 64 × 128"):
        engine.check(config)


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_trial_reads_its_file_once(
    engine: Engine, saved: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, strict: bool
) -> None:
    paths: list[Path] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: paths.append(self) or real(self))
    first_loss(engine, fitting(tmp_path, saved[kind], train_type=kind, resume_strict=strict))
    assert paths == [Path(saved[kind]) / "adapters.safetensors"]
