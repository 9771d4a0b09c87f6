"""Our adapters in PEFT: transformers' logits with the exported files are ours. Needs `uv sync --group peft`."""

import json
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from lora_core import models, saved
from lora_core.adapter_folder import read, save_peft
from lora_core.config import TrainConfig
from lora_core.engine import Engine
from tests.lora_core.conftest import MakeEngine, MakeSpec
from tests.lora_core.helpers import demo, new_spec, run
from tests.lora_core.test_peft import KINDS

pytestmark = pytest.mark.peft

TOKENS = [[1, 20, 30, 40, 50, 250], [7, 8, 9, 200, 100, 0]]
TOLERANCE = 1e-4


def logits(base: str, adapter: Path | None) -> np.ndarray:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = model if adapter is None else PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.filterwarnings("error:.*keys:UserWarning")  # PEFT's word on weights that are missing or left over
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_equal(make_engine: MakeEngine, make_spec: MakeSpec, tmp_path: Path, kind: str) -> None:
    spec = make_spec(kind, rank=4, **KINDS[kind])
    run(make_engine(), spec)
    ours = read(f"{spec.folder}/adapters")
    base = ours.config["model"]
    save_peft(tmp_path / "peft", ours.tensors, ours.mlx_config, base)

    expected = np.array(mlx_lm.load(base, adapter_path=f"{spec.folder}/adapters")[0](mx.array(TOKENS)))
    assert np.abs(logits(base, tmp_path / "peft") - expected).max() < TOLERANCE
    # A check that could not fail would be none: without the adapter, and with another α, they differ.
    assert np.abs(logits(base, None) - expected).max() > 100 * TOLERANCE
    file = tmp_path / "peft" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "lora_alpha": 2 * config["lora_alpha"]}))
    assert np.abs(logits(base, tmp_path / "peft") - expected).max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("train_type", "bits"), [("lora", None), ("dora", None), ("full", None), ("lora", "4bit"), ("dora", "4bit")]
)
def test_merged_models_are_transformers_own(tmp_path: Path, train_type: str, bits: str | None) -> None:
    from transformers import AutoTokenizer

    engine = Engine(models.load("builtin:tiny", bits), demo(), 1)
    spec = new_spec(tmp_path, "trial", train_type=train_type, eval_rows=6)
    run(engine, spec)
    saved.fuse(engine, Path(spec.folder) / "adapters", TrainConfig.from_dict(spec.config), tmp_path / "merged")
    stock, tokenizer = mlx_lm.load(str(tmp_path / "merged"))
    expected = np.array(stock(mx.array(TOKENS)))
    assert np.abs(logits(str(tmp_path / "merged"), None) - expected).max() < TOLERANCE
    assert np.abs(np.array(engine.base.model(mx.array(TOKENS))) - expected).max() > 100 * TOLERANCE
    theirs, chat = AutoTokenizer.from_pretrained(tmp_path / "merged"), [{"role": "user", "content": "Warm it up."}]
    assert theirs.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(chat, tokenize=False)


def test_an_adapter_made_by_peft_is_read(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from lora_core.adapter_folder import save_adapter
    from lora_core.models import resolve

    torch.manual_seed(0)
    base = str(resolve("builtin:tiny"))
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_dora=True, init_lora_weights=False,
        layers_to_transform=[0, 2], task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config).eval()
    model.save_pretrained(tmp_path / "theirs")
    stored = read(str(tmp_path / "theirs"))
    save_adapter(tmp_path / "ours", stored.tensors, stored.mlx_config)
    with torch.no_grad():
        expected = model(torch.tensor(TOKENS)).logits.numpy()
    found = np.array(mlx_lm.load(base, adapter_path=str(tmp_path / "ours"))[0](mx.array(TOKENS)))
    assert np.abs(found - expected).max() < TOLERANCE
    assert np.abs(logits(base, None) - expected).max() > 100 * TOLERANCE
