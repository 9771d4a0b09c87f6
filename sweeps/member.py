"""`python -m sweeps.member key=value ...` joins a study that another process leads; the arguments are the search's.

It leaves the study as with Ctrl-C once the process that started it closes the pipe, or dies.
"""

import os
import signal
import sys
import threading

from sweeps.flags import Flags
from sweeps.guard import guarded
from sweeps.search import run
from sweeps.space import make_job


def main() -> int:
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    return guarded(_join, sys.argv[1:])


def _join(argv: list[str]) -> int:
    flags = Flags.parse(argv)
    return run(make_job(flags.overrides, flags.config_dir, flags.quiet), is_member=True)


def _leave_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
