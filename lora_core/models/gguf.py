"""Turns a llama-family GGUF file into an MLX model folder."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_core.errors import UserError
from lora_core.models import cache
from lora_core.models.gguf_header import Header, read_header
from lora_core.records import write_json

if TYPE_CHECKING:
    import mlx.core as mx

CONVERTER_VERSION = 1  # part of the cache's key: raise it when the same file converts differently
ARCHITECTURES = ("llama",)
# llama.cpp keeps the output layer of its 4-bit files in Q6_K, so 4-bit files need it too.
SUPPORTED = ("Q4_0", "Q4_1", "Q8_0", "Q6_K", "F16", "F32")
EXACT_UP_TO = 1_000_000_000  # parameters; bigger models are stored in half the space
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def folder_of(path: Path) -> tuple[Path, list[str]]:
    """The MLX folder of a GGUF file, converted at the first call, and lines to show.

    Raises UserError for a file of another architecture or quantisation, and for a damaged one.
    """
    key = f"{cache.digest(path)[:12]}-v{CONVERTER_VERSION}"
    folder, built = cache.built_once(path.stem, key, lambda part: convert(path, part))
    return folder, [f"Converted {path.name} to MLX once: {folder}."] if built else []


def convert(path: Path, folder: Path) -> None:
    """Writes config.json, model.safetensors and the tokenizer's files into the existing `folder`."""
    from mlx_lm.utils import load_model

    from lora_core.models.gguf_tokenizer import build_tokenizer

    header = read_header(path)
    _check_supported(path, header)
    try:
        config = _config(path, header.metadata)
        _check_blocks(path, header, config["num_hidden_layers"])
        tokenizer, tokenizer_config = build_tokenizer(path, header.metadata)
        config |= _save_weights(_weights(path, config), folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json", tokenizer_config)
        write_json(folder / "config.json", config)
        load_model(folder, lazy=True)  # every name and shape must fit
    except (UserError, OSError):
        raise
    except Exception as error:  # tokenizers raises nothing more special
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is damaged or not whole ({reason}).") from error


def _save_weights(weights: dict[str, "mx.array"], folder: Path) -> dict[str, Any]:
    """Writes model.safetensors; returns what config.json says about it."""
    import mlx.core as mx

    exact = sum(weight.size for weight in weights.values()) <= EXACT_UP_TO
    dtype = mx.float32 if exact else mx.float16
    stored = {name: weight.astype(dtype) for name, weight in weights.items()}
    mx.eval(stored)
    try:
        mx.save_safetensors(str(folder / "model.safetensors"), stored, metadata={"format": "mlx"})
    except RuntimeError as error:  # the disk is full
        raise OSError(str(error)) from error
    return {
        "vocab_size": weights["model.embed_tokens.weight"].shape[0],
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "torch_dtype": "float32" if exact else "float16",
    }


def _check_supported(path: Path, header: Header) -> None:
    architecture = header.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{path}: GGUF of architecture {architecture!r}: supported is {known}.")
    unsupported = sorted(set(header.kinds.values()) - set(SUPPORTED))
    if unsupported:
        found, known = ", ".join(unsupported), ", ".join(SUPPORTED)
        raise UserError(f"{path}: GGUF with {found} tensors: supported are {known}.")
    for name in header.kinds:
        if _mlx_name(name) is None:
            raise UserError(
                f"{path}: tensor {name} belongs to no plain llama model (biases, experts and scaled rotary "
                "embeddings are not read). Use the model's MLX or Hugging Face folder."
            )


def _check_blocks(path: Path, header: Header, depth: int) -> None:
    found = {name.split(".")[1] for name in header.kinds if name.startswith("blk.")}
    if len(found) != depth:
        raise UserError(f"{path} is damaged or not whole: llama.block_count is {depth}, found {len(found)} blocks.")


def _mlx_name(name: str) -> str | None:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`; None for an unknown tensor."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    if match is None or match[2] not in NAMES:
        return None
    block = f"model.layers.{match[1]}." if match[1] else ""
    return f"{block}{NAMES[match[2]]}.weight"


def _config(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    def needed(key: str) -> Any:
        if f"llama.{key}" not in metadata:
            raise UserError(f"{path} lacks llama.{key}: it is not a whole language model.")
        return metadata[f"llama.{key}"]

    heads, hidden = needed("attention.head_count"), needed("embedding_length")
    head_dim = metadata.get("llama.attention.key_length", hidden // heads)
    partial = metadata.get("llama.rope.dimension_count", head_dim) != head_dim
    if partial or "llama.rope.scaling.factor" in metadata:
        raise UserError(f"{path}: partial or scaled rotary embeddings are not read from GGUF.")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": needed("block_count"),
        "intermediate_size": needed("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": needed("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.get("llama.rope.freq_base", 10000.0),
        "max_position_embeddings": needed("context_length"),
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
    }


def _weights(path: Path, config: dict[str, Any]) -> dict[str, "mx.array"]:
    """MLX name → dense array, rows of q and k in the order of the Hugging Face layout."""
    import mlx.core as mx

    stored: dict[str, mx.array] = mx.load(str(path), format="gguf")
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = {}
    for name in [name for name in stored if name.endswith(".weight")]:
        weight = _dense(stored, name)
        layer = name.split(".")[-2]
        if layer in heads:
            weight = unpermute(weight, heads[layer])
        weights[str(_mlx_name(name))] = weight
    return weights


def _dense(stored: dict[str, "mx.array"], name: str) -> "mx.array":
    """Float array. Quantised blocks of 32 values are d·q+m, with float16 d and m, computed in float32."""
    import mlx.core as mx

    base = name.removesuffix(".weight")
    if f"{base}.scales" not in stored:
        return stored[name]
    scales, biases = (stored[f"{base}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
    bits = stored[name].shape[-1] // scales.shape[-1]  # 32 values of `bits` bits fill `bits` words of 32
    return mx.dequantize(stored[name], scales, biases, group_size=32, bits=bits)


def unpermute(weight: "mx.array", heads: int) -> "mx.array":
    """GGUF keeps the rows of q and k (heads·head_dim, in) so that rotary pairs are neighbours; MLX and
    Hugging Face want the first halves of all pairs, then the second ones."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
