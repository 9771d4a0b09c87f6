"""What a program says, and its exit code, where a command fails."""

import os
import signal
import sys
from collections.abc import Callable

from lora_core import disk
from lora_core.errors import UserError


def guarded(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Runs a command; what it raises becomes a line and an exit code."""
    try:
        return command(arguments)
    except UserError as error:
        print(f"lora-sweep: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("lora-sweep: interrupted", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if not disk.is_full(error):
            raise
        print(f"lora-sweep: there is {disk.told(error)}", file=sys.stderr)
        return 1
