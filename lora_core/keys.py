"""Which linear layers of a block `lora_parameters.keys` means: names, patterns such as `*.q_proj`, or a preset."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from lora_core.errors import UserError, near

PRESETS = {  # by the names that mlx_lm's models give the parts of a block
    "all": ("*",),
    "attention": ("*attn*", "*attention*"),
    "mlp": ("*mlp*", "*feed_forward*", "*ffn*", "*moe*"),
}


def matches(keys: Sequence[str] | None, name: str) -> bool:
    """Whether the layer of this block-relative name is meant; None means every layer."""
    return keys is None or any(fnmatchcase(name, pattern) for key in keys for pattern in PRESETS.get(key, (key,)))


def check_keys(keys: Sequence[str] | None, known: Sequence[str]) -> None:
    """Raises UserError for a key that means no linear layer of a block."""
    if keys is not None and not keys:
        raise UserError("lora_parameters.keys is empty: expected layer names, or null for all linear layers.")
    for key in keys or []:
        if not any(matches([key], name) for name in known):
            # A bare name such as q_proj deserves its full form before any look-alike.
            full = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
            hint = f" Did you mean {', '.join(full)}?" if full else near(key, [*known, *PRESETS])
            raise UserError(
                f"lora_parameters.keys: {key!r} matches no linear layer of a block.{hint}\nKnown: {', '.join(known)}"
            )
