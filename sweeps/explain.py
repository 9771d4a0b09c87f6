"""Hydra's, OmegaConf's and YAML's errors in our own form: the key, what was expected, near matches."""

import re
from collections.abc import Mapping

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError
from yaml import MarkedYAMLError

from lora_core.errors import UserError, first_line, near
from sweeps.keys import UnknownKey, expected, near_key

Known = Mapping[str, set[type]]


def explain(error: Exception, known: Known) -> UserError:
    """What `error` means to the person who typed the command; `known` maps every key to its types."""
    cause = error.__cause__
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, MissingConfigException):
        return _no_such_option(error)
    if isinstance(error, OmegaConfBaseException):
        return _bad_value(error, known)
    if isinstance(error, MarkedYAMLError):
        return UserError(_in_yaml(error))
    wrong_key = re.search(r"Could not override '(.+?)'", str(error))
    if wrong_key:
        return unknown_key(wrong_key[1], known)
    sweep = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+)'(?:\n1| req)", str(error))
    if sweep:
        return UserError(
            f"{sweep[1]} is a sweep, but one run takes one value (a list is written [a,b]).\n"
            "Use `lora-sweep search`, or `lora-sweep train -m` for one run after the other."
        )
    if isinstance(cause, OmegaConfBaseException):
        return _bad_value(cause, known)
    if "Config group override must be" in str(error):
        return UserError("A config group takes the name of an option, group=option; ~group leaves it out.")
    return UserError(first_line(error))


def unknown_key(key: str, known: Known) -> UnknownKey:
    return UnknownKey(f"{key}: there is no such key.{near_key(key, known)}")


def _unreadable(error: OverrideParseException) -> UserError:
    if re.search(r"choice\(.*NoneType is incompatible", error.message, re.DOTALL):
        return UserError(f"{error.override}: choice() cannot hold null. Write key=null,0.1 instead.")
    evaluating = re.search(r"while evaluating '.*?': (.+)", error.message)
    reason = f": {evaluating[1]}" if evaluating else ""
    return UserError(
        f"{error.override} cannot be read{reason}.\n"
        "Expected key=value; quote values with special characters: 'key=\"a, b\"'."
    )


def _no_such_option(error: MissingConfigException) -> UserError:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if error.options is None:
        return UserError(first_line(error))
    options = ", ".join(sorted(error.options))
    return UserError(f"{group}={option}: no such option.{near(option, error.options)} There are: {options}.")


def _bad_value(error: OmegaConfBaseException, known: Known) -> UserError:
    key = error.full_key or ""
    if isinstance(error, ConfigKeyError | AttributeError):
        return unknown_key(key, known)
    if isinstance(error, ValidationError) and key in known:
        return UserError(f"{key} {_found(str(error))}: expected {expected(known[key])}.")
    return UserError(f"{key}: {first_line(error)}" if key else first_line(error))


def _found(message: str) -> str:
    """What OmegaConf says was there instead."""
    if value := re.search(r"[Vv]alue '(.*?)'", message, re.DOTALL):
        return "is null" if value[1] == "None" else f"is {value[1]!r}"
    return "is one value" if "is not a ListConfig" in message else "cannot be that"


def _in_yaml(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{mark.name}:{mark.line + 1}" if mark else "A YAML file"
    return f"{where}: not valid YAML ({error.problem})."
