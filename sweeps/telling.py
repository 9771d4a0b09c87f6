"""Tells MLflow from a thread of its own, so that a store that is slow, or gone, costs the search no time."""

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from lora_core.records import StudyRecord, TrialRecord
from lora_core.trial import TrialSpec
from sweeps.study_folder import command_on
from sweeps.tracking import Tracker

SETTLE = 2.0  # seconds that a beginning waits for its run in MLflow to be made
PAUSE = 5.0  # seconds before a store that failed is tried again; doubled each time, up to
LONGEST_PAUSE = 60.0
LAST_TRY = 5.0  # seconds that a search waits at its end for a store that was gone, or when it was interrupted,
STALLED = 30.0  # and for one that takes this long over a single thing


class Teller:
    """Has `tracker` told everything in order, once the study is open: of several processes that work on one, one tells.
    `say`: takes a line for the user, from any thread. `leads`: whether this process still is the one that tells; one
    that has slept may not have noticed yet that it is not.

    What the store misses while it is gone is read from disk once it is back. A bug in the telling is raised by
    the next call here.
    """

    def __init__(self, tracker: Tracker, say: Callable[[str], None], leads: Callable[[], bool] = lambda: True) -> None:
        self.tracker = tracker
        self.say = say
        self.leads = leads
        self._events: queue.Queue[Callable[[], None]] = queue.Queue()
        self._bug: Exception | None = None
        self._gone = self._closing = False
        self._pause = PAUSE
        self._last = time.monotonic()  # when the store was last tried, or something was told
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="telling MLflow", daemon=True)

    @property
    def is_open(self) -> bool:
        return self._thread.ident is not None

    def open_study(self, study: StudyRecord, folder: Path) -> None:
        self.study = study
        self.tracker.prepare(study, folder)
        self._thread.start()
        self._tell(self.tracker.open_run)

    def start_trial(self, study: StudyRecord, spec: TrialSpec) -> None:
        self._tell(partial(self.tracker.start_trial, study, spec))

    def log_evaluation(self, name: str, row: dict[str, float]) -> None:
        self._tell(partial(self.tracker.log_evaluation, name, row))

    def end_trial(self, record: TrialRecord) -> None:
        self._tell(partial(self.tracker.end_trial, record))

    def log_number(self, name: str, metric: str, number: float) -> None:
        self._tell(partial(self.tracker.log_number, name, metric, number))

    def settle(self, seconds: float) -> None:
        """Waits until everything so far was told, but no longer than that."""
        told = threading.Event()
        self._put(told.set)
        told.wait(seconds)

    def give_way(self) -> None:
        """Tells nothing more, not even what it has still to tell: another process does."""
        with suppress(queue.Empty):
            while True:
                self._events.get_nowait()
        self._put(self._leave)

    def _leave(self) -> None:
        self.tracker.give_way()
        self._closed.set()

    def close_study(self, study: StudyRecord, state: str, report_folder: Path | None) -> str | None:
        """Waits, within reason, until the store knows all; returns a line about what it lacks, if anything."""
        if not self.is_open:
            return None
        self._closing = True
        self._put(partial(self._close, study, state, report_folder))
        self._last = time.monotonic()
        while not self._closed.wait(0.05) and time.monotonic() - self._last < self._patience(state):
            if state == "complete" and self.tracker.store.carries_files:  # it fails if that takes too long
                self._last = time.monotonic()
        self._raise_bug()
        problem = self.tracker.problem
        if problem is None and not self._closed.is_set():
            problem = "MLflow could not be told everything: it does not answer."
        again = command_on(study, self.tracker.folder, "sync")
        return None if problem is None else f"{problem}\nOnce it is back: {again}"

    def _patience(self, state: str) -> float:
        return LAST_TRY if self._gone or state != "complete" else STALLED

    def _close(self, study: StudyRecord, state: str, report_folder: Path | None) -> None:
        if self.leads():
            self.tracker.close_study(study, state, report_folder)
        else:
            self.tracker.give_way()
        self._closed.set()

    def _tell(self, event: Callable[[], None]) -> None:
        self._put(partial(self._told, event))

    def _told(self, event: Callable[[], None]) -> None:
        if self.leads():
            event()

    def _put(self, event: Callable[[], None]) -> None:
        self._raise_bug()
        if self.is_open:
            self._events.put(event)

    def _raise_bug(self) -> None:
        if self._bug is not None:
            raise self._bug

    def _work(self) -> None:
        try:
            while not self._closed.is_set():
                self._next()
        except Exception as error:
            self._bug = error
            self._closed.set()

    def _next(self) -> None:
        """The next event, or after a pause without any, another try."""
        try:
            event = self._events.get(timeout=self._pause if self._gone else None)
        except queue.Empty:
            return self._try_again()
        event()
        if self.tracker.problem is None:
            self._last = time.monotonic()
        elif not self._gone:
            self._gone, self._last = True, time.monotonic()
            if self._closing:  # the end will say so
                return
            self.say(f"{self.tracker.problem}. The search goes on; it is told later what it missed.")
        elif time.monotonic() - self._last >= self._pause and not self._closing:
            self._try_again()

    def _try_again(self) -> None:
        if self.leads() and self.tracker.recover():
            self._gone, self._pause = False, PAUSE
            self.say("MLflow answers again and was told what it missed.")
        else:
            self._pause = min(LONGEST_PAUSE, 2 * self._pause)
        self._last = time.monotonic()
