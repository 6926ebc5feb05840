"""Where tasks run: in this thread, on threads, or on the workers of a ``distributed.Client``."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from dask.callbacks import Callback
from dask.local import get_sync
from dask.threaded import get as get_threaded

from spatialdata_segment.engine.events import Event, emit
from spatialdata_segment.errors import InputError, is_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence


class Executor:
    """Runs the tasks of one stage after the other.

    Parameters
    ----------
    n_jobs
        Tasks in flight; None: the cores that this process may use. 1 runs in the calling thread. Of no
        account where a ``distributed.Client`` is active: its workers are used.
    """

    def __init__(self, n_jobs: int | None = None) -> None:
        if n_jobs is not None and not (is_whole(n_jobs) and n_jobs >= 1):
            raise InputError(f"n_jobs={n_jobs}, expected a whole number from 1, or None for all cores")
        self.client = _active_client()
        self.n_jobs = n_jobs if n_jobs is not None else _cores()

    @property
    def where(self) -> str:
        """Name of the kind of executor."""
        if self.client is not None:
            return "distributed"
        return "threads" if self.n_jobs > 1 else "serial"

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], stage: str, before: int = 0) -> list[Any]:
        """Call ``function`` on every item and return the results in the items' order."""
        token = uuid4().hex
        graph: dict[Any, Any] = {f"{stage}-{token}-{i}": (partial(function, item),) for i, item in enumerate(items)}
        return self.run(graph, list(graph), stage, before)

    def run(self, graph: Any, keys: Sequence[Any], stage: str, before: int = 0, total: int = 0) -> list[Any]:
        """Compute the keys of a dask graph, telling of each that is done (``before`` of ``total`` were earlier)."""
        total = max(total, len(keys) + before)
        emit(Event(stage, before, total))
        if not keys:
            return []
        if self.client is not None:
            return self._distributed(graph, keys, stage, before, total)
        wanted, done = set(keys), before

        def posttask(key: Hashable, *_: object) -> None:
            nonlocal done
            if key in wanted:
                done += 1
                emit(Event(stage, done, total))

        with Callback(posttask=posttask):
            if self.n_jobs == 1:
                return list(get_sync(graph, list(keys)))
            return list(get_threaded(graph, list(keys), num_workers=self.n_jobs))

    def _distributed(self, graph: Any, keys: Sequence[Any], stage: str, before: int, total: int) -> list[Any]:
        from distributed import as_completed

        assert self.client is not None
        futures = self.client.get(graph, list(keys), sync=False)
        for done, future in enumerate(as_completed(futures), before + 1):
            if future.status == "error":
                error = future.exception()
                self.client.cancel(futures)
                raise error
            emit(Event(stage, done, total))
        return list(self.client.gather(futures))


def _active_client() -> Any:
    if "distributed" not in sys.modules:
        return None
    from distributed import get_client

    try:
        return get_client()
    except ValueError:
        return None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
