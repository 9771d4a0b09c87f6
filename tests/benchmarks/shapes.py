"""Models of usual sizes with random weights, for measuring speed where no weights are at hand."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs

# hidden size, blocks, feed-forward size, heads, key-value heads, tied embeddings: SmolLM2-135M, Llama 3.2 1B, 3.1 8B
SHAPES = {
    "135m": (576, 30, 1536, 9, 3, True),
    "1b": (2048, 16, 8192, 32, 8, True),
    "8b": (4096, 32, 14336, 32, 8, False),
}


def build(name: str, folder: Path, tokenizer: Path) -> Path:
    """Writes the model in bfloat16 with the tokenizer found in the folder `tokenizer`; returns its folder."""
    vocabulary = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"])
    hidden, blocks, inner, heads, kv_heads, tied = SHAPES[name]
    config = {
        "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": blocks, "intermediate_size": inner,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-5,
        "vocab_size": vocabulary if name == "135m" else 128256, "tie_word_embeddings": tied,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    mx.random.seed(0)
    model = Model(ModelArgs.from_dict(config))
    weights = {name: 0.02 * mx.random.normal(w.shape) if w.ndim == 2 else w for name, w in
               tree_flatten(model.parameters())}  # fmt: skip
    halved = {name: w.astype(mx.bfloat16) for name, w in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), halved, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    for file in tokenizer.glob("*token*"):
        shutil.copy(file, folder / file.name)
    return folder
