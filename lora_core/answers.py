"""Answers of a base model to prompts, with an adapter or without."""

from mlx_lm import generate
from mlx_lm.tuner.utils import load_adapters

from lora_core.adapter_folder import check_base, read
from lora_core.models import Base


def answers(base: Base, adapter: str | None, prompts: list[str], max_tokens: int) -> list[str]:
    """The likeliest continuation of each prompt, as a chat where the tokenizer has a template for one. An adapter
    stays in `base`. Raises UserError if it cannot be trusted, or was trained on another base model."""
    if adapter is not None:
        check_base(read(adapter).config, base.info.fingerprint, adapter)
        load_adapters(base.model, adapter)
    base.model.eval()  # no dropout
    return [generate(base.model, base.tokenizer, _tokens(base, each), max_tokens=max_tokens) for each in prompts]


def _tokens(base: Base, prompt: str) -> str | list[int]:
    if base.tokenizer.chat_template is None:
        return prompt
    return base.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
