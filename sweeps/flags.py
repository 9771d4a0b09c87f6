"""The flags on the command lines of `train`, `search` and `plan`: Hydra's, and --quiet."""

from dataclasses import dataclass
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from lora_core.errors import UserError, near

_KNOWN = (
    "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--info", "--multirun",
    "--config-dir", "--config-name", "--config-path", "--shell-completion", "--run", "--experimental-rerun",
    "--quiet",
)  # fmt: skip


@dataclass
class Flags:
    """`given`: those of Hydra as typed, with their values. `show`: Hydra shows something, nothing is trained.
    `quiet`: only what came out is to be said, and errors."""

    given: list[str]
    overrides: list[str]
    config_dir: str | None
    multirun: bool
    show: bool
    quiet: bool

    @classmethod
    def parse(cls, argv: list[str]) -> "Flags":
        parser = get_args_parser()
        parser.add_argument("--quiet", action="store_true")
        parser.error = _refuse  # type: ignore[method-assign]
        args = parser.parse_intermixed_args(argv)
        if args.config_name or args.config_path or args.experimental_rerun:
            raise UserError("--config-name, --config-path and --experimental-rerun: use --config-dir FOLDER instead.")
        if args.resolve and not (args.cfg or args.help):
            raise UserError("--resolve goes with --cfg or --help.")
        shown = args.help or args.hydra_help or args.cfg or args.info or args.shell_completion
        given = [word for word in argv if word not in (*args.overrides, "--quiet")]
        return cls(given, args.overrides, args.config_dir, args.multirun, bool(shown), args.quiet)


def _refuse(message: str) -> NoReturn:
    flag = message.partition("arguments: ")[2].split()[0] if "arguments: " in message else ""
    raise UserError(f"{message}.{near(flag, _KNOWN)} Flags: lora-sweep train --hydra-help")
