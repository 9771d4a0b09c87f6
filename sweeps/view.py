"""The view of a study in MLflow's pages: which runs, in which order, with which columns and charts.

MLflow keeps a view as a tag of the experiment, and lists it under Views.
"""

import json
from typing import Any

from lora_core.records import StudyRecord
from sweeps.links import BEST_FIRST, trials_filter

PREFIX = "mlflow.sharedViewState."
METRICS = ("best_val_loss", "test_loss", "train_loss", "trainable_params", "train_seconds")
CHARTS = "loss"  # those with this in their names


def view_of(study: StudyRecord, made: int) -> str:
    """The tag's value; `made`: when, in milliseconds."""
    return json.dumps({"name": study.study, "createdAt": made, "state": json.dumps(_state(study))})


def _state(study: StudyRecord) -> dict[str, Any]:
    columns = [f"metrics.`{name}`" for name in METRICS] + [f"params.`{axis['key']}`" for axis in study.axes]
    return {
        "searchFilter": trials_filter(study.study),
        **BEST_FIRST,
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL",  # else the charts have ten runs
        "chartsSearchFilter": CHARTS,
    }
