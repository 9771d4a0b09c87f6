"""Slow work beside the training, such as files on their way to and from a server."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

MOMENT = 1.0  # seconds that who asks first waits, for most is done by then


class Aside:
    """Does one thing after the other, in a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "aside")
        self._asked: dict[str, Future[bool]] = {}
        self._last: Future[bool] | None = None

    @property
    def is_idle(self) -> bool:
        return self._last is None or self._last.done()

    def done(self, what: str, act: Callable[[], bool]) -> bool:
        """Has `act` done, which is known by `what`, and returns what it returns; False as long as it is not done, so
        that one asks again."""
        if what not in self._asked:
            patience = MOMENT if self.is_idle else 0
            self._asked[what] = self.add(act)
            wait([self._asked[what]], patience)
        return self._asked[what].done() and self._asked.pop(what).result()

    def add(self, act: Callable[[], bool]) -> Future[bool]:
        """Has `act` done after all else."""
        self._last = self._thread.submit(act)
        return self._last

    def drop(self, what: str) -> None:
        """Takes back what was asked for, or waits until it is done."""
        if (asked := self._asked.pop(what, None)) and not asked.cancel():
            wait([asked])

    def settle(self, seconds: float | None = None) -> None:
        """Waits until all is done, or for so long."""
        wait([self._last] if self._last else [], seconds)

    def close(self) -> None:
        """Waits for what is at work, and leaves the rest."""
        self._thread.shutdown(cancel_futures=True)
