"""What a search would find in its storage, tracker and folder, looked at without leaving a trace."""

from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial

from lora_core.errors import UserError
from lora_core.records import StudyRecord
from sweeps.config import SweepConfig
from sweeps.connect import first_line, sqlite_file
from sweeps.fingerprint import contents, identity
from sweeps.public import public
from sweeps.storage import open_storage
from sweeps.study import check_same
from sweeps.study_folder import check_folder, check_writable, earlier_record, ended_on_disk


def check_stores(config: SweepConfig) -> None:
    """Raises UserError where the storage or the tracker's database could not be used."""
    _tables("storage", config.storage)
    if not config.tracking.uri.startswith(("http:", "https:", "file:")):
        _tables("tracking.uri", config.tracking.uri)


def ended_trials(record: StudyRecord, folder: Path, storage: str) -> int:
    """How many trials of the study `record`, which is in `storage`, have ended; 0 if it is a new one. Raises UserError
    if another study has its name."""
    ours = _identity(record)
    stored = _stored(record.study, storage)
    there = earlier_record(folder)
    if stored is not None:
        check_same(record.study, stored.user_attrs.get("identity", ours), ours)
    elif there is not None:
        check_same(record.study, _identity(there), ours)
    check_folder(record, _finished(stored), folder)
    return len(ended_on_disk(folder))


def _identity(record: StudyRecord) -> dict[str, Any]:
    return identity(record.config, record.axes) | contents(record)


def _stored(name: str, url: str) -> optuna.Study | None:
    if "studies" not in _tables("storage", url):
        return None
    storage = open_storage(url)
    if name not in optuna.get_all_study_names(storage):
        return None
    return optuna.load_study(study_name=name, storage=storage)


def _finished(study: optuna.Study | None) -> list[FrozenTrial]:
    trials = [] if study is None else study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.state.is_finished()]


def _tables(key: str, url: str) -> list[str]:
    """The tables of the database at `url`. A file that is not there yet has none; the folder for it must be."""
    file = sqlite_file(url)
    if file is not None and not file.exists():
        if file.parent.is_dir():
            check_writable(key, file.parent)
            return []
        raise UserError(f"{key}={public(url)} cannot be opened: {file.parent} is not a folder.")
    try:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            return sqlalchemy.inspect(connection).get_table_names()
    except ImportError as error:
        raise UserError(f"{key}={public(url)} needs a package: {first_line(error)}.") from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise UserError(f"{key}={public(url)} cannot be opened: {first_line(error)}") from None
