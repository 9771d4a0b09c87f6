"""Where the fine-tune happened: the size of ΔW in each adapted layer of the winner, from its saved adapter."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lora_core.records import ADAPTER
from reports.panels import Tiles
from reports.study import Study
from reports.wording import amount, listed, percent, plural

DEAD = 1e-3  # of the median norm: a layer below has hardly been changed
NAMED = 5  # of them, in the text
_LAYER = re.compile(r".*?layers\.(\d+)\.(.+)\.lora_a")


@dataclass
class Layer:
    block: int
    kind: str  # its name within the block
    norm: float  # Frobenius, of ΔW


@dataclass
class AdapterFacts:
    trial: str = ""
    layers: list[Layer] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    upper: float = 0.0  # share of the squared norms in the upper half of the adapted blocks
    why_not: str | None = None

    @property
    def caption(self) -> str:
        top = max(self.layers, key=lambda layer: layer.norm)
        told = (
            f"‖ΔW‖ (Frobenius) in {plural(len(self.layers), 'adapted layer')} of {self.trial}. The largest, "
            f"{amount(top.norm)}, is that of {top.kind} in block {top.block}; {percent(100 * self.upper)} of the "
            "squared norm lies in the upper half of the adapted blocks."
        )
        if not self.dead:
            return f"{told} No layer is below {DEAD:g} of the median."
        first = listed(self.dead) if len(self.dead) <= NAMED else f"{', '.join(self.dead[:NAMED])}, …"
        return f"{told} Below {DEAD:g} of the median: {plural(len(self.dead), 'layer')} ({first})."


def compute(study: Study) -> AdapterFacts:
    folder = study.winner.adapter if study.winner else None
    if study.winner is None or folder is None:
        return AdapterFacts(why_not="Not drawn: there is no winner with an adapter.")
    if study.winner.config.get("train_type") == "full":
        return AdapterFacts(why_not="Not drawn: the winner trained the model's own weights and has no adapters.")
    try:
        layers = _layers(Path(folder))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return AdapterFacts(why_not=f"Not drawn: the adapter in {folder} cannot be read.")
    if not any(layer.norm for layer in layers):
        return AdapterFacts(why_not="Not drawn: the adapter changes nothing.")
    median = float(numpy.median([layer.norm for layer in layers]))
    dead = [f"{layer.kind} in block {layer.block}" for layer in layers if layer.norm < DEAD * median]
    return AdapterFacts(study.winner.name, layers, dead, _upper(layers))


def _layers(folder: Path) -> list[Layer]:
    """The layers with a pair of matrices, by block."""
    scale = json.loads((folder / "adapter_config.json").read_text())["lora_parameters"]["scale"]
    tensors = load_file(folder / ADAPTER)
    found = []
    for name, a in tensors.items():
        if (place := _LAYER.fullmatch(name)) and a.ndim == 2:
            norm = scale * product_norm(a, tensors[name.removesuffix("a") + "b"])
            found.append(Layer(int(place[1]), place[2], norm))
    return sorted(found, key=lambda layer: (layer.block, layer.kind))


def product_norm(a: numpy.ndarray, b: numpy.ndarray) -> float:
    """‖A·B‖ of A [in, r] and B [r, out], without making the product: its square is the trace of AᵀA·BBᵀ."""
    a, b = a.astype(numpy.float64), b.astype(numpy.float64)
    return math.sqrt(max(0.0, float(numpy.sum((a.T @ a) * (b @ b.T)))))


def _upper(layers: list[Layer]) -> float:
    blocks = sorted({layer.block for layer in layers})
    half = blocks[len(blocks) // 2 :]
    squares = [(layer.norm**2, layer.block in half) for layer in layers]
    return sum(square for square, inside in squares if inside) / sum(square for square, _ in squares)


def tiles(found: list[AdapterFacts]) -> list[Tiles]:
    """One for each, all with the same rows, columns and colour scale."""
    layers = [layer for one in found for layer in one.layers]
    blocks = sorted({layer.block for layer in layers})
    kinds = list(dict.fromkeys(layer.kind for layer in layers))
    norms = [layer.norm for layer in layers]
    drawn = []
    for one in found:
        known = {(layer.kind, layer.block): layer.norm for layer in one.layers}
        values = [[known.get((kind, block)) for block in blocks] for kind in kinds]
        labels = [[f"‖ΔW‖ {amount(norm)}" for norm in row] for row in values]
        columns, scale = list(map(str, blocks)), (min(norms), max(norms))
        drawn.append(Tiles("block", "", columns, kinds, values, scale, "‖ΔW‖", labels))
    return drawn
