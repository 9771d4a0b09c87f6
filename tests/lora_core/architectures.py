"""Small models of many architectures, random, through mlx_lm's own classes, as folders that mlx_lm loads."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from lora_core.models import tiny
from lora_core.records import write_json

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 512,
    "vocab_size": 259, "tie_word_embeddings": True, "bos_token_id": tiny.BOS, "eos_token_id": tiny.EOS,
    "torch_dtype": "float32",
}  # fmt: skip
# A window shorter than the rows, and local and global blocks in turn.
GEMMA3 = {**SHAPE, "head_dim": 8, "sliding_window": 16, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}

DENSE: dict[str, dict[str, Any]] = {
    "llama": {**SHAPE, "attention_bias": True},
    "mistral": {**SHAPE, "tie_word_embeddings": False},
    "qwen2": SHAPE,
    "qwen3": {**SHAPE, "head_dim": 16},
    "gemma2": {**SHAPE, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": GEMMA3,
    "gemma3": {"text_config": {**GEMMA3, "model_type": "gemma3_text"}, "vocab_size": 259, "torch_dtype": "float32"},
    "phi3": {**SHAPE, "tie_word_embeddings": False},
    "olmo2": SHAPE,
}
MIXTURES: dict[str, dict[str, Any]] = {
    # Block 0 is dense, so that blocks differ.
    "qwen3_moe": {**SHAPE, **EXPERTS, "head_dim": 8, "decoder_sparse_step": 1, "mlp_only_layers": [0]},
}
ALL = {**DENSE, **MIXTURES}


def write_model(folder: Path, kind: str, seed: int = 0) -> Path:
    """The model of `ALL[kind]` in the new `folder`, its weights large enough that logits are not flat."""
    config = {**ALL[kind], "model_type": kind}
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    classes = _get_classes(config)
    shapes = dict(tree_flatten(classes[0](classes[1].from_dict(dict(config))).parameters()))
    tied = ALL[kind].get("text_config", ALL[kind])["tie_word_embeddings"]
    random = np.random.default_rng(seed)
    weights = {
        name: _drawn(random, value)
        for name, value in shapes.items()
        if not (tied and name.endswith("lm_head.weight"))  # a file without it means: tied
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    tiny._write_tokenizer(folder)
    return folder


def _drawn(random: np.random.Generator, value: mx.array) -> mx.array:
    if len(value.shape) == 1:  # norms and biases
        return mx.array(value + random.normal(0, 0.1, value.shape).astype(np.float32))
    return mx.array(random.normal(0, value.shape[-1] ** -0.5, value.shape).astype(np.float32))
