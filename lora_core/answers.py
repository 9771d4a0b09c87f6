"""Answers of a base model to prompts, with an adapter or without."""

from collections.abc import Sequence

from mlx_lm import generate
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import dequantize_model

from lora_core.adapter_folder import check_base, read
from lora_core.config import loads_in_mlx_lm
from lora_core.models import Base


def answers(base: Base, adapter: str | None, prompts: list[str], max_tokens: int) -> list[str]:
    """The likeliest continuation of each prompt, as a chat where the tokenizer has a template for one. An adapter
    stays in `base`. Raises UserError if it cannot be trusted, or was trained on another base model."""
    if adapter is not None:
        config = read(adapter).config
        check_base(config, base.info.fingerprint, adapter)
        if not loads_in_mlx_lm(config.get("fine_tune_type", "lora"), base.info.bits):
            dequantize_model(base.model)
        load_adapters(base.model, adapter)
    return continuations(base, [_tokens(base, each) for each in prompts], max_tokens)


def continuations(base: Base, prompts: Sequence[str | list[int]], max_tokens: int) -> list[str]:
    """The likeliest one of each prompt, by the model as it is."""
    base.model.eval()  # no dropout
    return [generate(base.model, base.tokenizer, prompt, max_tokens=max_tokens) for prompt in prompts]


def _tokens(base: Base, prompt: str) -> str | list[int]:
    if base.tokenizer.chat_template is None:
        return prompt
    return base.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
