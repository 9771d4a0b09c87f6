"""The curves of the study's own run in MLflow: the value of each trial, and the best so far."""

import math
from collections.abc import Sequence

from lora_core.records import StudyRecord, TrialRecord
from reports.constraints import broken, constraints_of
from sweeps.store import Store, milliseconds

BEST, VALUE = "study/best_so_far", "study/trial_value"


class History:
    """Those of `study`, whose run exists by the time anything is added."""

    def __init__(self, store: Store, study: StudyRecord) -> None:
        self.store = store
        self.study = study
        self._best = math.inf
        self._latest = 0

    def add(self, record: TrialRecord) -> None:
        """Trials end out of order; the best so far belongs to the highest number that has ended."""
        if self._counts(record):
            assert record.number is not None and record.value is not None
            points = [(BEST, self._best, self._latest), (VALUE, record.value, record.number)]
            self.store.log(self.study.tracking["run_id"], points, milliseconds())

    def catch_up(self, records: Sequence[TrialRecord]) -> None:
        """Adds what the curves lack of the trials that have ended."""
        counted = [record for record in records if self._counts(record)]
        if not counted:
            return
        run_id = self.study.tracking["run_id"]
        told = {metric: {step for step, *_ in self.store.history(run_id, metric)} for metric in (BEST, VALUE)}
        best, points = math.inf, []
        for record in counted:
            assert record.number is not None and record.value is not None
            best = min(best, record.value)
            points += [(BEST, best, record.number), (VALUE, record.value, record.number)]
        missing = [point for point in points if point[2] not in told[point[0]]]
        if missing:
            self.store.log(run_id, missing, milliseconds())

    def _counts(self, record: TrialRecord) -> bool:
        """Whether the trial is one that counts in the search, noted if so."""
        if record.role != "trial" or record.state != "complete":
            return False
        if record.number is None or record.value is None:
            return False
        if broken(record, constraints_of(self.study.config)):
            return False
        self._best = min(self._best, record.value)
        self._latest = max(self._latest, record.number)
        return True
