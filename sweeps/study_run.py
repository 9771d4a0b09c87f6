"""The MLflow run of a study itself, the parent of those of its trials."""

from lora_core.records import StudyRecord
from sweeps.run_values import study_tags
from sweeps.store import Store
from sweeps.trial_run import add_data


def open_study_run(store: Store, study: StudyRecord) -> str:
    """Reopens the run that `study.tracking` names; if there is none, makes one and names it there. Returns its id."""
    run_id = study.tracking.get("run_id")
    if run_id is not None and store.has_run(run_id):
        store.reopen(run_id, study_tags(study))
        return run_id
    study.runs = {}
    run_id = store.create_run(study.study, study_tags(study), {})
    study.tracking = {**study.tracking, "run_id": run_id}
    add_data(store, run_id, study)
    return run_id
