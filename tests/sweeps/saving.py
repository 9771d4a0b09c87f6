"""`python -m tests.sweeps.saving WORDS`: the command line, whose training processes write checkpoints all the time.

With STOPPED in the environment, the processes of that group get SIGSTOP as the first checkpoint is about to be sent.
"""

import math
import os
import signal
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


def main() -> int:
    from sweeps.cli import main
    from sweeps.store import Store

    subprocess.Popen = Popen  # type: ignore[misc]
    real = Store.add_file

    def add(self: Store, run_id: str, file: Path, folder: str) -> None:
        if "STOPPED" in os.environ and folder.startswith("checkpoints/"):
            os.killpg(int(os.environ["STOPPED"]), signal.SIGSTOP)
        real(self, run_id, file, folder)

    Store.add_file = add  # type: ignore[method-assign]
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main() if sys.argv[1:] else work())
