"""Slow work beside the training, such as files on their way to and from a server."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait

Act = Callable[[], bool]


class Aside:
    """Does one thing after the other, in a thread of its own. It ends with the process, whatever hangs in it."""

    def __init__(self) -> None:
        self._acts: queue.Queue[tuple[Future[bool], Act] | None] = queue.Queue()
        self._asked: dict[str, Future[bool]] = {}
        self._adding = threading.Lock()
        self._last: Future[bool] | None = None
        self._closed = False
        threading.Thread(target=self._work, name="aside", daemon=True).start()

    @property
    def is_idle(self) -> bool:
        with self._adding:
            return self._last is None or self._last.done()

    def done(self, what: str, act: Act, moment: float) -> bool:
        """Has `act` done, which is known by `what`, and returns what it returns, or raises; False as long as it is not
        done, so that one asks again. Waits for so many seconds, a `moment`, where nothing else is to be done before."""
        if what not in self._asked:
            patience = moment if self.is_idle else 0
            self._asked[what] = self.add(act)
            wait([self._asked[what]], patience)
        return self._asked[what].done() and self._asked.pop(what).result()

    def add(self, act: Act) -> Future[bool]:
        """Has `act` done after all else."""
        future: Future[bool] = Future()
        with self._adding:
            self._last = future
            self._acts.put((future, act))
        return future

    def drop(self, what: str) -> None:
        """Takes back what was asked for. What is at work goes on, and nobody hears of it."""
        if asked := self._asked.pop(what, None):
            asked.cancel()

    def close(self) -> None:
        """Leaves all that is not at work."""
        self._closed = True
        self._acts.put(None)

    def _work(self) -> None:
        while (asked := self._acts.get()) is not None:
            future, act = asked
            if not self._closed and future.set_running_or_notify_cancel():
                try:
                    future.set_result(act())
                except Exception as error:
                    future.set_exception(error)
