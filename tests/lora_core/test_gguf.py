"""GGUF files, written here from a llama in the Hugging Face layout, must come back as that llama."""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs

from lora_core import models
from lora_core.errors import UserError
from lora_core.models import gguf

HIDDEN, HEADS, KV_HEADS, VOCABULARY = 256, 4, 2, 300
TOKENS = mx.array([[1, 40, 7, 200, 3, 3, 90]])
ARGS = ModelArgs(
    model_type="llama", hidden_size=HIDDEN, num_hidden_layers=2, intermediate_size=512,
    num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, rms_norm_eps=1e-5, vocab_size=VOCABULARY,
    tie_word_embeddings=False,
)  # fmt: skip
GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
Tensor = tuple[int, tuple[int, ...], bytes]  # type number, shape, content


def gguf_name(name: str) -> str:
    match = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.weight", name)
    assert match
    return (f"blk.{match[1]}." if match[1] else "") + GGUF_NAMES[match[2]] + ".weight"


def permuted(name: str, weight: np.ndarray) -> np.ndarray:
    """What llama.cpp's converter does to q and k: the two halves of each head are interleaved."""
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
    if heads is None:
        return weight
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def tokenizer_metadata(pre: str = "smollm", add_bos: bool = False) -> dict[str, Any]:
    merges = ["1 2", "h e", "l l", "he ll", "hell o", "Ġ hello"]
    tokens = ["<|end|>", "<|start|>", *byte_characters().values(), *(m.replace(" ", "") for m in merges)]
    tokens += [f"<|extra{i}|>" for i in range(VOCABULARY - len(tokens))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token.startswith("<|") else 1 for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": add_bos,
        "tokenizer.chat_template": "{% for turn in messages %}<|start|>{{ turn['content'] }}{% endfor %}",
    }


def model_metadata() -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": 512,
        "llama.context_length": 128,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": HIDDEN // HEADS,
        **tokenizer_metadata(),
    }


def encoded(value: Any) -> bytes:
    """A metadata value with its type in front."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    items = [encoded(item) for item in value]
    return struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", len(items)) + b"".join(i[4:] for i in items)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def write(path: Path, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Writes a GGUF file, version 3."""
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    header += b"".join(text(key) + encoded(value) for key, value in metadata.items())
    data = b""
    for name, (kind, shape, content) in tensors.items():
        header += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        header += struct.pack("<IQ", kind, len(data))
        data += content + bytes(-len(content) % 32)
    path.write_bytes(header + bytes(-len(header) % 32) + data)
    return path


def halves(values: np.ndarray) -> np.ndarray:
    return values.astype("<f2")


def q4_0(weight: np.ndarray) -> tuple[bytes, np.ndarray]:
    """The blocks of a matrix, and the values that they stand for: d·(q-8)."""
    blocks = weight.reshape(-1, 32)
    d = halves(np.abs(blocks).max(1, keepdims=True) / 7)
    q = np.clip(np.round(blocks / d.astype("f4")) + 8, 0, 15).astype("u1")
    content = np.hstack([d.view("u1"), nibbles(q)])
    return content.tobytes(), (d.astype("f4") * (q.astype("f4") - 8)).reshape(weight.shape)


def q4_1(weight: np.ndarray) -> tuple[bytes, np.ndarray]:
    """d·q + m."""
    blocks = weight.reshape(-1, 32)
    m = halves(blocks.min(1, keepdims=True))
    d = halves((blocks.max(1, keepdims=True) - m.astype("f4")) / 15)
    q = np.clip(np.round((blocks - m.astype("f4")) / d.astype("f4")), 0, 15).astype("u1")
    content = np.hstack([d.view("u1"), m.view("u1"), nibbles(q)])
    return content.tobytes(), (d.astype("f4") * q + m.astype("f4")).reshape(weight.shape)


def nibbles(q: np.ndarray) -> np.ndarray:
    """Two values a byte: the first half of a block in the low bits, the second in the high ones."""
    return q[:, :16] | (q[:, 16:] << 4)


def q8_0(weight: np.ndarray) -> tuple[bytes, np.ndarray]:
    """d·q with signed bytes."""
    blocks = weight.reshape(-1, 32)
    d = halves(np.abs(blocks).max(1, keepdims=True) / 127)
    q = np.round(blocks / d.astype("f4")).clip(-127, 127).astype("i1")
    content = np.hstack([d.view("u1"), q.view("u1")])
    return content.tobytes(), (d.astype("f4") * q).reshape(weight.shape)


def q6_k(weight: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Random blocks of 256 in the shape of `weight`: d·s·(q-32), 16 values a scale s. MLX gives float16."""
    random = np.random.default_rng(5)
    count = weight.size // 256
    low, high = random.integers(0, 256, (count, 128), "u1"), random.integers(0, 256, (count, 64), "u1")
    scales = random.integers(-60, 60, (count, 16), "i1")
    d = halves(np.full((count, 1), 1e-4))
    parts = []
    for half in (0, 1):
        first, second = (low[:, 64 * half + 32 * i : 64 * half + 32 * (i + 1)] for i in (0, 1))
        top = high[:, 32 * half : 32 * (half + 1)]
        parts += [(first & 15) | (top & 3) << 4, (second & 15) | (top >> 2 & 3) << 4]
        parts += [first >> 4 | (top >> 4 & 3) << 4, second >> 4 | (top >> 6) << 4]
    q = np.hstack(parts).astype("f4") - 32
    values = d.astype("f4") * np.repeat(scales.astype("f4"), 16, 1) * q
    content = np.hstack([low, high, scales.view("u1"), d.view("u1")])
    return content.tobytes(), halves(values).astype("f4").reshape(weight.shape)


QUANTISERS: dict[str, tuple[int, Callable[[np.ndarray], tuple[bytes, np.ndarray]]]] = {
    "Q4_0": (2, q4_0),
    "Q4_1": (3, q4_1),
    "Q8_0": (8, q8_0),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_SWEEP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def original() -> dict[str, np.ndarray]:
    """The weights of a random llama in the Hugging Face layout."""
    random = np.random.default_rng(1)
    shapes = {name: value.shape for name, value in dict(tree_flatten(Model(ARGS).parameters())).items()}
    drawn = {name: random.normal(0, 0.1, shape).astype("f4") for name, shape in shapes.items()}
    return {name: value + ("norm" in name) for name, value in drawn.items()}


def logits(weights: dict[str, np.ndarray]) -> mx.array:
    model = Model(ARGS)
    model.load_weights([(name, mx.array(value)) for name, value in weights.items()])
    return model(TOKENS)


def unquantised(value: np.ndarray) -> Tensor:
    return 0, value.shape, value.tobytes()


def quantised_file(path: Path, original: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """Writes the model with its matrices quantised (the output layer of Q4_0 as Q6_K, as llama.cpp does).
    Returns the weights that this stands for, in the Hugging Face layout."""
    tensors, meant = {}, {}
    for name, value in original.items():
        number, quantise = (14, q6_k) if (kind, name) == ("Q4_0", "lm_head.weight") else QUANTISERS[kind]
        if value.ndim == 1:
            meant[name], tensors[gguf_name(name)] = value, unquantised(value)
        else:  # blocks lie along rows, so that permuting rows and quantising them can change places
            meant[name] = quantise(value)[1]
            tensors[gguf_name(name)] = (number, value.shape, quantise(permuted(name, value))[0])
    write(path, model_metadata(), tensors)
    return meant


@pytest.mark.parametrize("kind", QUANTISERS)
def test_quantised_files_come_back_exactly(kind: str, original: dict[str, np.ndarray], tmp_path: Path) -> None:
    meant = quantised_file(tmp_path / "model.gguf", original, kind)
    base = models.load(str(tmp_path / "model.gguf"))
    for name, value in dict(tree_flatten(base.model.parameters())).items():
        assert mx.array_equal(value, mx.array(meant[name])), name
    assert mx.array_equal(base.model(TOKENS), logits(meant))
    assert "Converted model.gguf" in base.notes[0]
    assert models.load(str(tmp_path / "model.gguf")).notes == []


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_files_that_mlx_writes_come_back_exactly(dtype: type, original: dict[str, np.ndarray], tmp_path: Path) -> None:
    rounded = {name: value.astype(dtype).astype("f4") for name, value in original.items()}
    arrays = {gguf_name(n): mx.array(permuted(n, v).astype(dtype)) for n, v in rounded.items()}
    mx.save_gguf(str(tmp_path / "model.gguf"), arrays, mlx_metadata())
    base = models.load(str(tmp_path / "model.gguf"))
    assert mx.array_equal(base.model(TOKENS), logits(rounded))
    stock, _ = mlx_lm.load(base.info.folder)  # type: ignore[misc]
    assert mx.array_equal(stock(TOKENS), logits(rounded))


def mlx_metadata() -> dict[str, Any]:
    """`model_metadata` as `mx.save_gguf` takes it."""
    types = {bool: mx.bool_, int: mx.uint32, float: mx.float32}
    made: dict[str, Any] = {}
    for key, value in model_metadata().items():
        if isinstance(value, str) or (isinstance(value, list) and isinstance(value[0], str)):
            made[key] = value
        else:
            made[key] = mx.array(value, types.get(type(value), mx.int32))
    return made


def test_without_unpermuting_it_would_be_another_model(
    original: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the tests above would notice if rows stayed in GGUF's order."""
    meant = quantised_file(tmp_path / "model.gguf", original, "Q8_0")
    monkeypatch.setattr(gguf, "unpermute", lambda weight, heads: weight)
    found = models.load(str(tmp_path / "model.gguf")).model(TOKENS)
    assert mx.abs(found - logits(meant)).max() > 0.5


def test_a_model_without_an_output_layer_is_tied(original: dict[str, np.ndarray], tmp_path: Path) -> None:
    del original["lm_head.weight"]
    tensors = {gguf_name(name): unquantised(permuted(name, value)) for name, value in original.items()}
    base = models.load(str(write(tmp_path / "model.gguf", model_metadata(), tensors)))
    tied = original | {"lm_head.weight": original["model.embed_tokens.weight"]}
    assert mx.allclose(base.model(TOKENS), logits(tied), atol=1e-5)


def test_big_models_are_stored_in_half_precision(
    original: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "EXACT_UP_TO", 1000)
    meant = quantised_file(tmp_path / "model.gguf", original, "Q4_1")
    folder = models.resolve(str(tmp_path / "model.gguf"))
    stored: dict[str, mx.array] = mx.load(str(folder / "model.safetensors"))  # type: ignore[assignment]
    for name, value in stored.items():
        assert mx.array_equal(value, mx.array(meant[name]).astype(mx.float16)), name


def tokenizer_of(tmp_path: Path, original: dict[str, np.ndarray], changed: dict[str, Any]) -> Any:
    tensors = {gguf_name(name): unquantised(permuted(name, value)) for name, value in original.items()}
    metadata = {key: value for key, value in (model_metadata() | changed).items() if value is not None}
    return models.load(str(write(tmp_path / "model.gguf", metadata, tensors))).tokenizer


TEXT = " hello hello12 12\n\n 3 é 漢"


@pytest.mark.parametrize("pre, digits", [("smollm", ["1", "2"]), ("gpt-2", ["12"]), ("llama-bpe", ["12"])])
def test_byte_level_tokens(pre: str, digits: list[str], original: dict[str, np.ndarray], tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, original, tokenizer_metadata(pre))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(" hello12")) == ["Ġhello", *digits]
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.encode("<|start|>h<|end|>")[::2] == [1, 0]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, {0})
    assert tokenizer.apply_chat_template([{"role": "user", "content": "h"}])[0] == 1


@pytest.mark.parametrize("add_bos", [True, False])
def test_bos_comes_first_only_if_the_file_says_so(
    add_bos: bool, original: dict[str, np.ndarray], tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(tmp_path, original, tokenizer_metadata(add_bos=add_bos))
    assert (tokenizer.encode("h")[0] == 1) == add_bos
    assert tokenizer.encode("h", add_special_tokens=False)[0] != 1


def test_sentencepiece_tokens(original: dict[str, np.ndarray], tmp_path: Path) -> None:
    words = ["▁", "h", "e", "l", "o", "he", "ll", "hell", "hello", "▁hello"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokens += [f"<extra{i}>" for i in range(VOCABULARY - len(tokens))]
    changed = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": None,
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.add_bos_token": None,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(index) for index in range(len(tokens))],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
    }
    tokenizer = tokenizer_of(tmp_path, original, changed)
    found = tokenizer.convert_ids_to_tokens(tokenizer.encode("hello helloé"))
    assert found == ["<s>", "▁hello", "▁hello", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("hello helloé"), skip_special_tokens=True) == "hello helloé"


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        models.load(str(path))
    assert len(str(caught.value).splitlines()) <= 3
    assert not list((path.parent / "cache").glob("*"))
    return str(caught.value)


EMBEDDING: Tensor = (0, (2, 4), bytes(32))


@pytest.mark.parametrize(
    "changed, tensors, expected",
    [
        ({"general.architecture": "qwen2"}, {}, "'qwen2': supported is llama"),
        ({}, {"blk.0.attn_q.weight": (12, (256,), bytes(144))}, "Q4_K tensors: supported are Q4_0"),
        ({}, {"output.weight": (30, (2, 4), bytes(16))}, "BF16 tensors"),
        ({}, {"output.weight": (99, (2, 4), bytes(16))}, "type 99"),
        ({}, {"rope_freqs.weight": EMBEDDING}, "rope_freqs.weight"),
        ({}, {"blk.0.ffn_gate_exps.weight": EMBEDDING}, "experts"),
        ({}, {}, "llama.block_count is 2, found 0 blocks"),
        ({"llama.block_count": 1}, {"blk.0.attn_norm.weight": EMBEDDING}, "not whole (ValueError: Missing"),
        ({"llama.block_count": None}, {}, "lacks llama.block_count"),
        ({"llama.rope.scaling.factor": 8.0}, {}, "scaled rotary"),
        ({"tokenizer.ggml.pre": "tekken", "llama.block_count": 0}, {}, "gpt2/tekken"),
        ({"tokenizer.ggml.merges": None, "llama.block_count": 0}, {}, "not whole (KeyError: 'merges')"),
    ],
)
def test_kinds_that_cannot_be_read(
    changed: dict[str, Any], tensors: dict[str, Tensor], expected: str, tmp_path: Path
) -> None:
    metadata = {key: value for key, value in (model_metadata() | changed).items() if value is not None}
    path = write(tmp_path / "model.gguf", metadata, {"token_embd.weight": EMBEDDING} | tensors)
    assert expected in refused(path)


@pytest.mark.parametrize("kept", [0, 3, 10, 30, 3000, -40])
def test_damaged_files(kept: int, original: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    quantised_file(path, original, "Q8_0")
    path.write_bytes(path.read_bytes()[:kept])
    assert "damaged" in refused(path)


def test_a_file_cut_short_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    assert "ends too early" in refused(path)


def test_files_that_are_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(range(256)) * 8)
    assert "damaged" in refused(path)
    path.write_text("hello" * 100)
    assert "not a GGUF file" in refused(path)
    path = path.with_suffix(".bin")
    path.write_text("hello")
    assert "neither" in refused(path)
