"""Where studies differ, and whether their losses can be compared at all."""

from typing import Any

from reports.reproduce import flat
from reports.study import Study

# Settings that only say where things are, or how they are called.
PLACES = ("study", "storage", "output_dir", "adapter_path", "tracking.", "search.name", "cluster.", "trainer.slots")


def differing(studies: list[Study]) -> dict[str, list[str]]:
    """Settings, space, contents and versions that are not the same in all."""
    each = [_facts(study) for study in studies]
    keys = list(dict.fromkeys(key for facts in each for key in facts))
    rows = {key: [facts.get(key, "–") for facts in each] for key in keys}
    return {key: texts for key, texts in rows.items() if len(set(texts)) > 1}


def _facts(study: Study) -> dict[str, str]:
    record = study.record
    config = {key: text for key, text in flat(record.config).items() if not key.startswith((*PLACES, "search.space"))}
    space = {f"axis {text.partition('=')[0]}": text.partition("=")[2] for text in record.space}
    contents = {f"{name} contents": flat(info).get("fingerprint", "–") for name, info in _infos(study).items()}
    return {**space, **config, **contents, **flat(record.environment)}


def _infos(study: Study) -> dict[str, dict[str, Any]]:
    return {"model": study.record.model, "data": study.record.data}


def unlike(studies: list[Study]) -> list[str]:
    """What must be the same for losses to be comparable, and is not."""
    found = []
    for name in ("model", "data"):
        if len({_infos(study)[name].get("fingerprint") for study in studies}) > 1:
            found.append(f"the {name}")
    for key in ("trainer.max_seq_length", "trainer.eval_rows", "data.mask_prompt", "data.valid_fraction"):
        if len({flat(study.record.config).get(key) for study in studies}) > 1:
            found.append(key)
    return found
