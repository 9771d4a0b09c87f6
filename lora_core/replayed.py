"""Steps that MLX does again without Python saying anew what to do.

On CUDA `mx.compile` is put around a step of trials that train together for long. It keeps what Python built once for
arrays of the same shapes, which spares 5 to 20 ms a step for which the device would wait, and makes fewer kernels.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mlx.core as mx

from lora_core import backend

PLAIN_CALLS = 16  # first: what a probe, or the end of a search, puts together is mostly not called so often
KEPT = 8  # functions kept compiled, the latest used


def replayed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same `function`, of something hashable and of dictionaries and lists of arrays, which alone may differ from
    call to call."""

    @lru_cache(KEPT)
    def of(fixed: Any) -> Callable[..., Any]:
        def plain(*arrays: Any) -> Any:
            return function(fixed, *arrays)

        calls, compiled = 0, mx.compile(plain)

        def run(*arrays: Any) -> Any:
            nonlocal calls
            calls += 1
            return (compiled if calls > PLAIN_CALLS and backend.is_cuda() else plain)(*arrays)

        return run

    return lambda fixed, *arrays: of(fixed)(*arrays)
