"""A BLAS must be loaded before anything imports mlx, so this comes first."""

from lora_core import backend

backend.prepare()
