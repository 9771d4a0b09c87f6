"""What a probe of the engine finds out. Apart from the probe, so that it can be read without MLX."""

from dataclasses import dataclass, field


@dataclass
class Measured:
    """Of one number of slots. `tokens_per_second`: those in the loss; `peak_gb`: the most memory in use with the
    largest settings, in 10^9 bytes."""

    slots: int
    tokens_per_second: float
    peak_gb: float


@dataclass
class Probe:
    """`slots`: the number chosen. `joins`: whether trials of different depth are to share a pass. `memory_gb`: the
    estimated peak of a run with them. `trial_seconds`: the share of one average trial, steps and evaluations.
    `fixed_seconds`: what is paid once, the base model's loss and the prefixes. `trainable`: fewest and most parameters.
    `notes`: lines to show."""

    slots: int
    joins: bool
    measured: list[Measured]
    memory_gb: float
    trial_seconds: float
    fixed_seconds: float
    trainable: tuple[int, int]
    notes: list[str] = field(default_factory=list)
