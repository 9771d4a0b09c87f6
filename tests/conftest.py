"""A BLAS must be loaded before anything imports mlx, so this comes first."""

import os

from lora_core import backend

backend.prepare()

# Set by `uv run pytest`. What the program prints must not depend on how the tests are started.
os.environ.pop("UV_RUN_RECURSION_DEPTH", None)
