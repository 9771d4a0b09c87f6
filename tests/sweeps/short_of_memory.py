"""A worker on a machine with little memory: `python -m tests.sweeps.short_of_memory HOW SLOTS [RANK [STEP]]`.

More than SLOTS trials at once, or a trial of RANK or more, do not fit. At step STEP this shows: HOW is `error`,
MLX's exception, or the number of the signal that ends the process.
"""

import os
import sys
from typing import Any

from lora_core import backend

ERROR = "[malloc] Unable to allocate 68719476736 bytes."


def main(how: str, slots: int, rank: int = 10**9, step: int = 6) -> None:
    backend.prepare()
    from lora_core.engine import Engine
    from sweeps import worker

    real = Engine.advance

    def advance(self: Any) -> None:
        real(self)
        # By the sixth they have been evaluated, and all have been told of it.
        trained = [slot for slot, *_ in self.running if slot.step >= step]
        ranks = [slot.config.lora_parameters.rank for slot in trained]
        if len(trained) > slots or max(ranks, default=0) >= rank:
            fail(how)

    Engine.advance = advance  # type: ignore[method-assign]
    worker.main()


def fail(how: str) -> None:
    if how == "error":
        raise RuntimeError(ERROR)
    os.kill(os.getpid(), int(how))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
