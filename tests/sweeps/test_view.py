"""The view of a study that MLflow's pages open with, as its tag. What they make of it: test_mlflow_pages."""

import json

from lora_core.records import StudyRecord
from sweeps import view
from sweeps.links import trials_filter


def test_it_has_the_losses_and_the_axes_best_first() -> None:
    told = json.loads(view.view_of(StudyRecord("s", axes=[{"key": "lora_parameters.rank"}]), made=7))
    assert (told["name"], told["createdAt"]) == ("s", 7)
    state = json.loads(told["state"])
    assert (state["searchFilter"], state["orderByKey"]) == (trials_filter("s"), "metrics.`best_val_loss`")
    assert state["orderByAsc"] is True
    assert state["selectedColumns"][0] == "metrics.`best_val_loss`"
    assert "params.`lora_parameters.rank`" in state["selectedColumns"]
