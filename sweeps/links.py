"""Addresses of pages of the MLflow UI."""

from urllib.parse import quote

from sweeps.public import public

BEST_FIRST = {"orderByKey": "metrics.`best_val_loss`", "orderByAsc": True}
LOCAL = "http://127.0.0.1:5000"  # where `lora-sweep ui` and `mlflow ui` serve a store that is no server


def base_of(uri: str, local: str = LOCAL) -> str:
    """Where the UI of the store at `uri` is served: by itself if it is a server, else at `local`."""
    return public(uri).rstrip("/") if uri.startswith(("http://", "https://")) else local


def trials_filter(study: str) -> str:
    """Trials and reference rows of a study, so that the best trial comes first: neither the study's own run, nor
    repeats with other seeds, nor attempts begun anew."""
    others = " and ".join(f"tags.`sweep.role` != '{role}'" for role in ("study", "confirm", "attempt"))
    return f"tags.`sweep.study` = '{study}' and {others}"


def study_link(base: str, experiment_id: str, study: str, has_view: bool = True) -> str:
    """Charts and table of a study's trials, best first, with its view of them if it is there: somebody may have
    deleted it."""
    order = {key: str(value).lower() for key, value in BEST_FIRST.items()}
    shown = {"viewStateShareKey": study} if has_view else {**order, "searchFilter": trials_filter(study)}
    # Without the first, MLflow 3 opens its page for GenAI.
    query = {"workflowType": "machine_learning", "compareRunsMode": "CHART", **shown}
    return f"{base}/#/experiments/{experiment_id}/runs?" + "&".join(
        f"{key}={quote(value, safe='')}" for key, value in query.items()
    )


def run_link(base: str, experiment_id: str, run_id: str) -> str:
    """The page of one run."""
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def artifact_link(experiment_id: str, run_id: str, path: str) -> str:
    """A file of a run, from any page of the same UI."""
    return f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/{path}?workflowType=machine_learning"
