"""How to do it again: commands, space, seeds, fingerprints, versions."""

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from lora_core.config import TrainConfig
from lora_core.records import StudyRecord
from reports.wording import amount, listed, plural, setting, typed

RESUMED = "Resumed with other versions: "  # how a study's note on that begins


@dataclass
class Reproduce:
    """`subject`: what was trained on what, in a line. `facts` and `environment`: what → how it was, as text, in reading
    order."""

    subject: str
    command: str
    resume_command: str
    space: list[str]
    changed: dict[str, str] = field(default_factory=dict)  # setting → its value, where that is not the default
    facts: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def reproduce(record: StudyRecord) -> Reproduce:
    facts = {**_search(record), **_model(record.model), **_data(record.data), **_stored(record)}
    return Reproduce(
        _subject(record),
        typed(again(record)),
        typed(record.resume_command),
        record.space or [f"{axis.get('key')}: {axis.get('kind')}" for axis in record.axes],
        changed(record.config),
        {name: text for name, text in facts.items() if text},
        flat(record.environment),
        record.notes,
    )


def again(record: StudyRecord) -> str:
    """The command under another name: under its own it would go on with the study that there is."""
    own = f"study={record.study}"
    return " ".join(f"{own}-again" if word == own else word for word in record.command.split(" "))


def _subject(record: StudyRecord) -> str:
    data = record.data
    rows = listed([f"{count:,} {split}" for split, count in (data.get("rows") or {}).items() if count])
    return f"{_last(record.model)} on {_last(data)}" + (f" ({rows} rows)" if rows else "")


def _last(known: dict[str, Any]) -> str:
    """The last part of the path of a model, or of data."""
    return PurePath(str(known.get("path") or "?")).name


def changed(config: dict[str, Any]) -> dict[str, str]:
    """The settings of a fine-tune that are not the default ones, as they would be typed."""
    ours, defaults = flat(TrainConfig.from_dict(config).to_dict()), flat(TrainConfig().to_dict())
    return {key: ours.get(key, "null") for key in {**defaults, **ours} if ours.get(key) != defaults.get(key)}


def _search(record: StudyRecord) -> dict[str, str]:
    return {
        "Sampler": record.sampler,
        "Pruner": record.pruner,
        "Objective": f"{record.objective}, {record.direction}",
        "Seed": str(record.seed),
        "Trials": amount(record.n_trials),
        "Study fingerprint": record.fingerprint,
        "Started": record.created,
        "Ended": record.ended or "",
    }


def _model(model: dict[str, Any]) -> dict[str, str]:
    size = f"{amount(model['parameters'])} parameters" if model.get("parameters") else ""
    blocks = plural(model["depth"], "block") if model.get("depth") else ""
    kind = [str(part) for part in (model.get("kind"), blocks, size, model.get("dtype")) if part]
    return {
        "Model": str(model.get("path", "")),
        "Model folder": str(model.get("folder", "")),
        "Model kind": ", ".join(kind),
        "Model fingerprint": str(model.get("fingerprint", "")),
    }


def _data(data: dict[str, Any]) -> dict[str, str]:
    tokens = data.get("tokens") or {}
    rows = [_split(split, count, tokens.get(split)) for split, count in (data.get("rows") or {}).items()]
    return {
        "Data": str(data.get("path", "")),
        "Data rows": "; ".join(rows),
        "Data fingerprint": str(data.get("fingerprint", "")),
        "Padded lengths": ", ".join(map(str, data.get("lengths") or [])),
    }


def _split(split: str, count: int, tokens: int | None) -> str:
    counted = f" ({amount(tokens)} tokens in the loss)" if tokens else ""
    return f"{split} {plural(count, 'row')}{counted}"


def _stored(record: StudyRecord) -> dict[str, str]:
    return {"Storage": record.storage, "MLflow": str(record.tracking.get("link") or "")}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested plain values as dotted name → text, without the empty ones."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        elif value not in (None, ""):
            found[prefix + str(name)] = setting(value)
    return found
