"""`python -m sweeps` is `lora-sweep`."""

import sys

from sweeps.cli import main

if __name__ == "__main__":
    sys.exit(main())
