"""`builtin:tiny`: a llama of 164,608 random parameters with one token per byte, for tests."""

from pathlib import Path

from lora_core.models import cache
from lora_core.records import write_json

SEED = 0
SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>")
BOS, EOS, PAD = range(256, 259)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "vocab_size": 259,
    "tie_word_embeddings": True,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "torch_dtype": "float32",
}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def folder_of() -> Path:
    """The model's MLX folder, written at the first call, and anew when this file changes."""
    return cache.built_once("tiny", cache.digest(Path(__file__))[:12], write)[0]


def write(folder: Path) -> None:
    """Writes the model into the existing `folder`. The same bytes on every machine."""
    write_json(folder / "config.json", CONFIG)
    _write_weights(folder)
    _write_tokenizer(folder)


def _write_weights(folder: Path) -> None:
    import mlx.core as mx
    import numpy as np
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    # NumPy and not MLX, whose random normals may differ in the last bit between devices.
    random = np.random.default_rng(SEED)
    weights: dict[str, mx.array] = {}
    for name, value in dict(tree_flatten(Model(ModelArgs.from_dict(CONFIG)).parameters())).items():
        matrix = len(value.shape) == 2
        drawn = random.normal(0.0, value.shape[-1] ** -0.5, value.shape) if matrix else np.ones(value.shape)
        weights[name] = mx.array(np.asarray(drawn, dtype=np.float32))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL, strict=True)),
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(folder / "tokenizer_config.json", config)
