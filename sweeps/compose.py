"""Hydra, as this program uses it: overrides are parsed, the packaged configuration is composed with them.

Everything that Hydra, OmegaConf or YAML complain about leaves here as a UserError.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lora_core.errors import UserError
from sweeps.axes import hydra_text
from sweeps.config import KEYS, PRUNERS, SAMPLERS
from sweeps.explain import Known, explain

CONF = "sweeps.conf"
_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)
_OPTIONS: dict[str, set[type]] = {
    f"search.{part}.{option}": {int}
    for part, known in (("sampler", SAMPLERS), ("pruner", PRUNERS))
    for options in known.values()
    for option in ("name", *options)
}


@contextmanager
def own_errors(kinds: tuple[type[Exception], ...] = _ERRORS) -> Iterator[None]:
    """Turns errors of the libraries underneath into a UserError."""
    known: Known = KEYS | _OPTIONS | {group: {str} for group in groups()}
    try:
        yield
    except kinds as error:
        raise explain(error, known) from None


def parse(texts: list[str]) -> list[Override]:
    """Hydra's override grammar, one override a text."""
    with own_errors():
        return OverridesParser.create().parse_overrides(texts)


@cache
def groups(config_dir: str | None = None) -> frozenset[str]:
    """The config groups of the package and of `config_dir`, such as `model` and `search/sampler`."""
    packaged = Path(str(files(CONF)))
    found = set()
    for root in [packaged] + ([Path(config_dir)] if config_dir else []):
        found |= {path.parent.relative_to(root).as_posix() for path in root.glob("**/*.yaml")}
    return frozenset(found - {"."})


class Composer:
    """The configuration under fixed `overrides` (plain ones: no sweeps) and, per call, a choice of groups."""

    def __init__(self, overrides: list[str], config_dir: str | None = None) -> None:
        if config_dir is not None and not Path(config_dir).is_dir():
            raise UserError(f"--config-dir {config_dir}: there is no such folder.")
        self.groups = groups(config_dir)
        self._overrides = with_local_data(overrides)
        if config_dir is not None:
            self._overrides.append(f"hydra.searchpath={hydra_text([f'file://{Path(config_dir).resolve()}'])}")
        self._made: dict[tuple[tuple[str, str | None], ...], DictConfig] = {}

    def compose(self, choices: dict[str, str | None] | None = None) -> DictConfig:
        """The composed configuration with `choices` (group → option). Made once: copy before changes."""
        wanted = tuple(sorted((choices or {}).items()))
        if wanted not in self._made:
            chosen = [f"{group}={option or 'null'}" for group, option in wanted]
            with own_errors(), initialize_config_module(CONF, version_base="1.3"):
                self._made[wanted] = compose("config", overrides=[*self._overrides, *chosen])
        return self._made[wanted]


def with_local_data(overrides: list[str]) -> list[str]:
    """`overrides`, and data=local where a path is given but no data chosen: the demo's budget is its own."""
    given = any(re.match(r"data\.path=", text) for text in overrides)
    chosen = any(re.match(r"[+~]*data(@|=|$)", text) for text in overrides)
    return ["data=local", *overrides] if given and not chosen else list(overrides)
