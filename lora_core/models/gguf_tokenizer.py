"""Rebuilds a Hugging Face tokenizer from the metadata of a GGUF file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_core.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
# How text is cut before byte-level BPE, by tokenizer.ggml.pre.
BYTE_LEVEL = ("smollm", "gpt-2", "llama-bpe")
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def build_tokenizer(path: Path, metadata: dict[str, Any]) -> tuple["Tokenizer", dict[str, Any]]:
    """The tokenizer, for tokenizer.json, and the content of tokenizer_config.json.

    Raises UserError if the file (`path`, for messages) has a tokenizer of another kind, and other exceptions
    if a part of it is missing.
    """
    values = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    kind, cut = values.get("model"), values.get("pre")
    if kind == "gpt2" and cut in BYTE_LEVEL:
        tokenizer = _byte_level(values, str(cut))
    elif kind == "llama":
        tokenizer = _sentencepiece(values)
    else:
        known = ", ".join(f"gpt2/{name}" for name in BYTE_LEVEL)
        raise UserError(f"{path}: GGUF with the tokenizer {kind}/{cut}: supported are {known} and llama.")
    _add_special(tokenizer, values)
    config = _config(values)
    if config["add_bos_token"]:
        _prepend_bos(tokenizer, config["bos_token"], values["bos_token_id"])
    return tokenizer, config


def _byte_level(values: dict[str, Any], cut: str) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    merges = [tuple(merge.split(" ", 1)) for merge in values["merges"]]
    tokenizer = Tokenizer(models.BPE(_vocabulary(values), merges, ignore_merges=cut == "llama-bpe"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut != "llama-bpe")
    before: dict[str, list[pre_tokenizers.PreTokenizer]] = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), behavior="isolated")],
    }
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before.get(cut, []), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(values: dict[str, Any]) -> "Tokenizer":
    """SentencePiece BPE with bytes for unknown characters, as in Llama 2; merges follow from the scores."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers.convert_slow_tokenizer import generate_merges

    vocabulary = _vocabulary(values)
    merges = generate_merges(vocabulary, dict(zip(values["tokens"], values["scores"], strict=True)))
    unknown = values["tokens"][values.get("unknown_token_id", 0)]
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    prefix = [normalizers.Prepend("▁")] if values.get("add_space_prefix", True) else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _vocabulary(values: dict[str, Any]) -> dict[str, int]:
    return {token: index for index, token in enumerate(values["tokens"])}


def _add_special(tokenizer: "Tokenizer", values: dict[str, Any]) -> None:
    """Control and user-defined tokens are found whole in a text; only control ones are special."""
    from tokenizers import AddedToken

    kinds = dict(zip(values["tokens"], values.get("token_type", []), strict=False))
    control = [token for token, kind in kinds.items() if kind == CONTROL]
    defined = [token for token, kind in kinds.items() if kind == USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in defined])


def _config(values: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        # llama.cpp begins a SentencePiece text with bos unless the file says otherwise.
        "add_bos_token": bool(values.get("add_bos_token", values["model"] == "llama")),
    }
    for name, key in NAMED.items():
        index = values.get(f"{key}_token_id")
        if index is not None:
            config[name] = values["tokens"][index]
    if values.get("tokenizer.chat_template"):
        config["chat_template"] = values["tokenizer.chat_template"]
    return config


def _prepend_bos(tokenizer: "Tokenizer", bos: str, index: int) -> None:
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, index)]
    )
