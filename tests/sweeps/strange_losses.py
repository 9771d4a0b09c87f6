"""A worker that sees strange losses: `python -m tests.sweeps.strange_losses nan|inf|-inf`, from the second evaluation
after step 0 on, in every trial of an odd number."""

import sys
from typing import Any

from lora_core import backend


def main(loss: float) -> None:
    backend.prepare()
    from lora_core.engine import Engine
    from sweeps import worker

    real = Engine.mean_losses

    def strange(self: Any, due: list[Any], *given: Any) -> list[float]:
        return [
            loss if (slot.spec.number or 0) % 2 and slot.step > slot.config.trainer.eval_every else true
            for slot, true in zip(due, real(self, due, *given), strict=True)
        ]

    Engine.mean_losses = strange  # type: ignore[method-assign]
    worker.main()


if __name__ == "__main__":
    main(float(sys.argv[1]))
