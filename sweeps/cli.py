"""The command line: `lora-sweep train | search | plan | report | …`, the same as `python -m sweeps …`.

Nothing heavy is imported before it is known that it will be needed, so that `--help` is instant.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version

from lora_core.errors import UserError, near
from sweeps.guard import guarded
from sweeps.keys import UnknownKey

USAGE = """\
Find the best LoRA fine-tune of a language model on MLX.

  lora-sweep train  [key=value ...]        one fine-tune
  lora-sweep search [key=a,b,c ...]        a search; the same study=NAME resumes it
  lora-sweep plan   [key=a,b,c ...]        what that search would take, measured; nothing is written
  lora-sweep report STUDY ...              HTML, Markdown, CSV and JSON about studies
  lora-sweep status [STUDY] [--watch]      how studies stand
  lora-sweep stop   STUDY [TRIAL]          ends a running study, or one of its trials
  lora-sweep sync   STUDY ...              tells MLflow what it missed while it was away
  lora-sweep generate STUDY PROMPT ...     what the base model and the winner answer
  lora-sweep compare STUDY TRIAL ...       what several trials answer
  lora-sweep export STUDY[/TRIAL] ...      an adapter as PEFT, or mlx_lm, has it
  lora-sweep ui                            the MLflow UI on the configured store

Examples:
  lora-sweep train model=smollm2 lora_parameters.rank=16
  lora-sweep search data.path=my_data 'lora_parameters.scale_ratio=tag(log,interval(0.5,8))' n_trials=32

train, search and plan take Hydra's overrides and flags: --help lists groups and keys, --cfg job shows the result.
  --quiet      with train and search: says only what came out, and errors
  --version    the version of this program
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command. 0: done; 1: a bug of ours, or a full disk; 2: bad input; 130: Ctrl-C; 143: SIGTERM."""
    return guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(arguments: list[str]) -> int:
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        print(f"lora-sweep {version('lora-sweep')}")
        return 0
    if command not in _COMMANDS:
        raise UserError(f"{command}: expected {', '.join(_COMMANDS)}.{near(command, _COMMANDS)}")
    try:
        return _COMMANDS[command](rest)
    except UnknownKey as error:
        raise UserError(f"{error} All: lora-sweep {command} --cfg job") from None


def _train(argv: list[str]) -> int:
    from sweeps.flags import Flags

    flags = Flags.parse(argv)
    if flags.show or flags.multirun:
        from sweeps import hydra_app

        if flags.show:
            return hydra_app.show("train", flags.given, flags.overrides)
        return hydra_app.multirun(flags.given, flags.overrides, flags.config_dir, flags.quiet)

    from sweeps.compose import Composer, parse
    from sweeps.config import resolve
    from sweeps.fits import check_has_adapters
    from sweeps.space import written_keys

    config = resolve(Composer(flags.overrides, flags.config_dir).compose())
    written = written_keys(parse(flags.overrides))
    check_has_adapters(written, [config])
    from sweeps import train

    return train.run(config, written, argv, flags.quiet)


def _search(argv: list[str]) -> int:
    return _with_job("search", argv)


def _plan(argv: list[str]) -> int:
    return _with_job("plan", argv)


def _with_job(command: str, argv: list[str]) -> int:
    """Runs a command that takes the arguments of a search."""
    from sweeps.flags import Flags

    flags = Flags.parse(argv)
    if flags.multirun:
        raise UserError(f"{command} takes no -m: write the axes as key=a,b,c. Hydra's multirun is lora-sweep train -m.")

    if command == "plan" and flags.quiet:
        raise UserError("plan takes no --quiet: all that it says is its answer.")

    from sweeps.space import make_job, shown_overrides

    if flags.show:
        from sweeps import hydra_app

        overrides = shown_overrides(flags.overrides, flags.config_dir)
        return hydra_app.show(command, flags.given, overrides)

    job = make_job(flags.overrides, flags.config_dir, flags.quiet)
    if command == "plan":
        from sweeps import plan

        return plan.run(job)
    from sweeps import search

    return search.run(job)


def _of(module: str, function: str = "main") -> Callable[[list[str]], int]:
    """A command that lies in a module of its own."""
    return lambda argv: getattr(import_module(module), function)(argv)


_COMMANDS = {
    "train": _train, "search": _search, "plan": _plan, "report": _of("reports.command"), "status": _of("sweeps.status"),
    "stop": _of("sweeps.stop"), "sync": _of("sweeps.sync"), "generate": _of("sweeps.answering", "generate"),
    "compare": _of("sweeps.answering", "compare"), "export": _of("sweeps.export"), "ui": _of("sweeps.ui"),
}  # fmt: skip
