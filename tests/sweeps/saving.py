"""`python -m tests.sweeps.saving WORDS`: the command line, whose training processes write checkpoints all the time."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from lora_core import backend

ROOT = Path(__file__).parents[2]


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
            argv, options["cwd"] = [sys.executable, "-m", "tests.sweeps.saving"], ROOT
        super().__init__(argv, **options)


if __name__ == "__main__" and len(sys.argv) == 1:
    work()
elif __name__ == "__main__":
    from sweeps.cli import main

    subprocess.Popen = Popen  # type: ignore[misc]
    sys.exit(main(sys.argv[1:]))
