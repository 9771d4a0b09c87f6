"""Where a base model comes from: a package, a GGUF file, a folder, a hub, or code."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_core.records import ModelInfo

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper


@dataclass
class Base:
    """A frozen base model. `model` is an mlx `nn.Module` with `layers`; `notes` are lines to show."""

    model: Any
    tokenizer: "TokenizerWrapper"
    info: ModelInfo
    notes: list[str] = field(default_factory=list)


def resolve(path: str) -> Path:
    """The local model folder, which stock `mlx_lm.load` reads, that `path` (see `ModelConfig`) stands for.

    Converts a package's or a .gguf file's weights once, into the cache; downloads a Hugging Face id once.
    Raises UserError if there is no such model or it cannot be read.
    """
    from lora_core.models import sources

    return sources.find(path)[0]


def load(path: str, quantization: str | None = None, group_size: int | None = None) -> Base:
    """Loads the model and tokenizer that `path` (see `ModelConfig`) stands for, quantised as asked for; on CPU in
    float32.

    Call `backend.prepare` first. Raises UserError as `resolve` does, if mlx_lm cannot load the folder, and where the
    model is quantised otherwise already.
    """
    from lora_core.models import loading, quantised, sources

    folder, notes = sources.find(path)
    if quantization is not None:
        folder, more = quantised.folder_of(folder, quantization, group_size)
        notes = [*notes, *more]
    base = loading.load_folder(folder, path)
    base.notes[:0] = notes
    return base
