"""What Hydra itself does when asked by a flag: show (`--cfg`, `--help`, `--info`), or run many (`-m`)."""

import logging
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lora_core.errors import UserError
from sweeps.compose import CONF, Composer, own_errors, parse, with_local_data
from sweeps.config import SweepConfig, resolve
from sweeps.fits import check_has_adapters
from sweeps.space import split, texts_of, written_keys


def show(command: str, flags: list[str], overrides: list[str]) -> int:
    """Answers the flags that only show something."""
    # Hydra shows by logging. Where the reader has gone (`| head`), each line would come back as a traceback.
    logging.raiseExceptions = False
    with own_errors():
        code = _run_hydra(command, flags, overrides, lambda _: None)
    sys.stdout.flush()
    return code


def multirun(flags: list[str], overrides: list[str], config_dir: str | None, quiet: bool = False) -> int:
    """`lora-sweep train -m`: one run after the other, each in a folder of Hydra's."""
    _check_jobs(overrides, config_dir)
    exit_codes: list[int] = []  # Hydra drops what a job returns
    refused: dict[Path, UserError] = {}  # by the job's folder

    def job(cfg: DictConfig) -> None:
        try:
            exit_codes.append(_train(cfg, quiet))
        except UserError as error:
            refused[Path(HydraConfig.get().runtime.output_dir)] = error

    # A ValueError is a bug of ours here: the configuration has been checked.
    with own_errors((HydraException, OmegaConfBaseException)):
        _run_hydra("train", flags, overrides, job)
    for folder in refused:
        _remove(folder)
    if refused:
        raise next(iter(refused.values()))  # the others are mostly the same
    return max(exit_codes)


def _remove(job: Path) -> None:
    """Leaves nothing of a job that was refused, nor of a command whose jobs all were."""
    shutil.rmtree(job)
    if not any(path.is_dir() for path in job.parent.iterdir()):
        shutil.rmtree(job.parent)
        with suppress(OSError):  # other commands have left something there
            os.removedirs(os.path.relpath(job.parent.parent))


def _run_hydra(command: str, flags: list[str], overrides: list[str], job: Callable[[DictConfig], None]) -> int:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise where it would print and exit
    before, sys.argv = sys.argv, [f"lora-sweep {command}", *flags, *with_local_data(overrides)]
    try:
        hydra.main(version_base="1.3", config_path=f"pkg://{CONF}", config_name="config")(job)()
    except SystemExit as ended:
        return 2 if ended.code else 0
    finally:
        sys.argv = before
    return 0


def _check_jobs(overrides: list[str], config_dir: str | None) -> None:
    """Every job's configuration, before the first of them trains."""
    plain, sweeps = split(overrides)
    for sweep in sweeps:
        if not sweep.is_discrete_sweep():
            raise UserError(f"{sweep.input_line}: -m runs every value of a list. A range is for lora-sweep search.")
    with own_errors():
        values = [[f"{s.get_key_element()}={v}" for v in s.sweep_string_iterator()] for s in sweeps]
    configs = [resolve(Composer([*texts_of(plain), *job], config_dir).compose()) for job in product(*values)]
    check_has_adapters(written_keys([*plain, *sweeps]), configs)


def _train(cfg: DictConfig, quiet: bool) -> int:
    """One of Hydra's jobs."""
    from sweeps import train

    job = HydraConfig.get()
    overrides = list(job.overrides.task)
    config = _numbered(resolve(cfg), job.job.num)
    folder = Path(job.runtime.output_dir)
    return train.run(config, written_keys(parse(overrides)), overrides, quiet, folder)


def _numbered(config: SweepConfig, number: int) -> SweepConfig:
    """Jobs of one multirun must not write over each other."""
    path = None if config.adapter_path is None else str(Path(config.adapter_path) / str(number))
    study = None if config.study is None else f"{config.study}-{number}"
    return replace(config, adapter_path=path, study=study)
