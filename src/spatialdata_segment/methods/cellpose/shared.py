"""What a network said of tiles that several windows hold: computed by the first that asks, kept for the others."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    Result = tuple[NDArray[np.float32], NDArray[np.float32]]

KEPT_BYTES = 64_000_000
"""Of results that nobody may ask for again."""


class SharedTiles:
    """Results by key, the least recently used ones dropped. Threads that ask for one at once wait for the first.

    Parameters
    ----------
    kept_bytes
        How much is kept.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._lock = Lock()
        self._known: OrderedDict[Hashable, Future[Result]] = OrderedDict()
        self._bytes = 0
        self._room = kept_bytes

    def take(
        self, keys: Sequence[Hashable | None], compute: Callable[[Sequence[int]], Iterator[tuple[int, Result]]]
    ) -> Iterator[tuple[int, Result]]:
        """Yield the position and the result of every key.

        What no other thread has, or computes already, is computed first, so that nobody waits in a circle.

        Parameters
        ----------
        keys
            All different, but for None: what nobody else asks for, which is not kept.
        compute
            Yields the positions and results of the positions that it is given.
        """
        mine, others = self._claim(keys)
        waiting = set(mine)
        try:
            for at, result in compute([at for at in range(len(keys)) if at not in others]):
                if at in mine:
                    self._publish(keys[at], mine[at], result)
                    waiting.discard(at)
                yield at, result
        finally:
            for at in waiting:  # it failed: those who wait compute for themselves
                self._withdraw(keys[at], mine[at])
        failed = []
        for at, future in others.items():
            try:
                yield at, future.result()
            except _WithdrawnError:
                failed.append(at)
        if failed:
            yield from compute(failed)

    def _claim(self, keys: Sequence[Hashable | None]) -> tuple[dict[int, Future[Result]], dict[int, Future[Result]]]:
        mine: dict[int, Future[Result]] = {}
        others: dict[int, Future[Result]] = {}
        with self._lock:
            for at, key in enumerate(keys):
                if key is None:
                    continue
                if key in self._known:
                    self._known.move_to_end(key)
                    others[at] = self._known[key]
                else:
                    mine[at] = self._known[key] = Future()
        return mine, others

    def _publish(self, key: Hashable, future: Future[Result], result: Result) -> None:
        future.set_result(result)
        with self._lock:
            self._bytes += _size(result)
            while self._bytes > self._room and len(self._known) > 1:
                oldest = next((k for k, f in self._known.items() if f.done() and k != key), None)
                if oldest is None:
                    break
                self._bytes -= _size(self._known.pop(oldest).result())

    def _withdraw(self, key: Hashable, future: Future[Result]) -> None:
        with self._lock:
            self._known.pop(key, None)
        future.set_exception(_WithdrawnError())


class _WithdrawnError(Exception):
    pass


def _size(result: Result) -> int:
    return sum(part.nbytes for part in result)
