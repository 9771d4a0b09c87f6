"""The winner of a study in MLflow's model registry: `mlflow.pyfunc.load_model("models:/STUDY@champion")` answers."""

import re
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from lora_core.adapter_folder import FILES
from lora_core.config import loads_in_mlx_lm
from lora_core.records import StudyRecord
from reports.study import Study
from sweeps.store import Store  # before mlflow: it decides how that is imported

from mlflow.exceptions import MlflowException  # isort: skip

ALIAS = "champion"
CODE = Path(__file__).with_name("champion_model.py")


def register(store: Store, study: Study) -> None:
    """Makes the winner the champion, unless it is already, or cannot be used: it lacks its adapter, run or model, or
    mlx_lm cannot load it."""
    best, record = study.winner, study.record
    adapter = best.adapter if best is not None else None
    if best is None or adapter is None or not all((Path(adapter) / name).is_file() for name in FILES):
        return
    if best.name not in record.runs or "folder" not in record.model:
        return
    if not loads_in_mlx_lm(best.config["train_type"], record.model.get("bits")):
        return
    name, tags = registered_name(record.study), {"sweep.trial": best.name, "sha256": best.adapter_sha256 or ""}
    if _champion(store, name) == tags:
        return
    run_id = record.runs[best.name]
    with tempfile.TemporaryDirectory() as beside:
        place = Path(beside)
        _save(place / ALIAS, _copied(Path(adapter), place / "adapters"), record)
        store.add_folder(run_id, place / ALIAS, ALIAS)
    source = f"{store.run(run_id).info.artifact_uri}/{ALIAS}"
    made = store.client.create_model_version(name, source, run_id, tags=tags)
    store.client.set_registered_model_alias(name, ALIAS, made.version)


def registered_name(study: str) -> str:
    """The study's name without what the registry refuses."""
    return re.sub(r"[/:]", "-", study)


def _champion(store: Store, name: str) -> dict[str, str] | None:
    """The tags of the present champion; makes the registered model if there is none."""
    try:
        store.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    aliases = store.client.get_registered_model(name).aliases
    return store.client.get_model_version_by_alias(name, ALIAS).tags if ALIAS in aliases else None


def _copied(adapter: Path, place: Path) -> Path:
    """Its two files, and nothing that was merged or exported there since."""
    place.mkdir()
    for name in FILES:
        shutil.copy(adapter / name, place)
    return place


def _save(place: Path, adapter: Path, record: StudyRecord) -> None:
    import mlflow.pyfunc

    mlflow.pyfunc.save_model(
        place,
        python_model=str(CODE),
        artifacts={"adapters": str(adapter)},
        model_config={"model": str(record.model["folder"])},
        pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "mlx-lm")],
    )
