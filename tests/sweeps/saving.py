"""`python -m tests.sweeps.saving WORDS`: the command line, whose training processes write checkpoints all the time.

With STOPPED in the environment, the processes of that group get SIGSTOP as the first checkpoint is about to be carried,
by the method of `Store` that STOPPED_AT names.
"""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from lora_core import backend


def work() -> None:
    """As `python -m sweeps.worker`."""
    backend.prepare()
    from lora_core import engine
    from sweeps import worker

    engine.SAVE_EVERY, engine.SAVE_SHARE = 0.0, math.inf
    worker.main()


class Popen(subprocess.Popen):
    def __init__(self, argv: list[str], **options: Any) -> None:
        if argv[1:] == ["-m", "sweeps.worker"]:
            argv = [sys.executable, "-m", "tests.sweeps.saving"]
        super().__init__(argv, **options)


def stopping(method: Callable[..., Any], group: int) -> Callable[..., Any]:
    def carry(*given: Any) -> Any:
        if any(str(each).startswith("checkpoints/") for each in given):
            os.killpg(group, signal.SIGSTOP)
        return method(*given)

    return carry


def main() -> int:
    from sweeps.cli import main
    from sweeps.store import Store

    subprocess.Popen = Popen  # type: ignore[misc]
    if "STOPPED" in os.environ:
        method = os.environ["STOPPED_AT"]
        setattr(Store, method, stopping(getattr(Store, method), int(os.environ["STOPPED"])))
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main() if sys.argv[1:] else work())
