"""Where tasks run: in this thread, on threads, or on the workers of a ``distributed.Client``."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import psutil
from dask.callbacks import Callback
from dask.delayed import delayed
from dask.local import get_sync
from dask.threaded import get as get_threaded

from spatialdata_segment.engine.devices import Turns, forget_turns, resolve_devices
from spatialdata_segment.engine.events import Event, emit
from spatialdata_segment.engine.loads import missing, packed, told
from spatialdata_segment.errors import ClusterError, InputError, ScratchError, SegmentationWarning, is_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from pathlib import Path

GPU = "GPU"
"""The resource, of workers that tell theirs, that tasks on a GPU take one of."""

logger = logging.getLogger(__name__)

_A_DEVICE = 2
"""Shards that a device works on: while one is computed there, another is made ready."""
_FILLED = 0.8
"""Share of its memory limit at which a worker of ``distributed`` pauses."""


class Room(NamedTuple):
    """Memory of a process that runs shards.

    Attributes
    ----------
    name
        How it is told.
    available
        Bytes.
    in_flight
        Tasks at once.
    """

    name: str
    available: int
    in_flight: int


JOBS = "decode", "queue", "write"
"""What ``n_jobs`` may tell apart."""


class Executor:
    """Runs the tasks of one stage after the other.

    Parameters
    ----------
    n_jobs
        Tasks in flight; None: the cores that this process may use. 1 runs in the calling thread. A mapping: shards
        decoded at once ("decode"; also all else), further ones whose maps wait for that ("queue"), blocks written at
        once ("write"). Of no account where a ``distributed.Client`` is active: its workers are used.

    Attributes
    ----------
    n_jobs, queue, writers
        As given.
    """

    def __init__(self, n_jobs: int | Mapping[str, int] | None = None) -> None:
        given = _jobs(n_jobs)
        self.client = _active_client()
        self.n_jobs = given.get("decode", cores())
        self.writers = given.get("write", self.n_jobs)
        self.queue = 0 if self.client is not None else given.get("queue", 0)
        self._pools: dict[int, ThreadPoolExecutor] = {}  # whatever the number of threads that call them
        self._making = threading.Lock()
        self._stopped = threading.Event()
        self._name = uuid4().hex
        weakref.finalize(self, forget_turns, self._name)

    def stop(self) -> None:
        """Run no further task: what calls `run` meanwhile, and later, is interrupted."""
        self._stopped.set()

    @property
    def where(self) -> str:
        """Name of the kind of executor."""
        if self.client is not None:
            return "distributed"
        return "threads" if max(self.in_flight, self.writers) > 1 else "serial"

    @property
    def in_flight(self) -> int:
        """Shards that may be at work in this process: those decoded, and those that wait for it."""
        return self.n_jobs + self.queue

    def turns(self, devices: int | None) -> Turns | None:
        """Return how many shards predict at once, on so many GPUs or on the CPU, and how many decode."""
        if not self.queue:
            return None
        return Turns(self._name, self.n_jobs if devices is None else _A_DEVICE * devices, self.n_jobs)

    @property
    def at_once(self) -> int:
        """Tasks that run at the same time."""
        if self.client is None:
            return self.n_jobs
        return sum(w["nthreads"] for w in self._workers().values())

    def rooms(self) -> list[Room]:
        """Return the processes that will run shards, and the memory of each, as far as it is limited."""
        if self.client is None:
            return [Room("this machine", psutil.virtual_memory().available, self.in_flight)]
        limited = {at: w for at, w in self._workers().items() if w["memory_limit"]}
        left = {at: max(0, int(_FILLED * w["memory_limit"]) - w["memory"]) for at, w in limited.items()}
        return [Room(f"worker {at}", left[at], w["nthreads"]) for at, w in limited.items()]

    def devices(self, given: str | int | Sequence[str], *, used: bool) -> tuple[str, ...]:
        """Return the devices of the processes that will run shards; see `resolve_devices`."""
        found = self._devices(given, used)
        if used and is_whole(given) and given > 0 and found[0] == "cpu":
            warnings.warn(
                f"{given} GPU{'' if given == 1 else 's'} may be used and none is there: networks run on the CPU. "
                "Install a CUDA build of torch, or pass devices='cpu'",
                SegmentationWarning,
                stacklevel=2,
            )
        return found

    def _devices(self, given: str | int | Sequence[str], used: bool) -> tuple[str, ...]:
        if self.client is None or not used:
            return resolve_devices(given, used=used)
        found = self._everywhere(resolve_devices, given, used=used)
        kinds = {at: devices[0].partition(":")[0] for at, devices in found.items()}
        if not found:
            raise ClusterError("the cluster has no worker: start some, or wait for them (wait_for_workers)")
        if len(set(kinds.values())) > 1:
            raise InputError(f"workers have different devices, {kinds}: the results would differ; pass devices='cpu'")
        fewest: tuple[str, ...] = min(found.values(), key=len)
        return fewest

    def check_seen(self, path: Path, what: str) -> None:
        """Raise where workers do not see a file or folder of this machine: what zarr does not find reads as zeros."""
        if blind := self._blind(path):
            raise InputError(
                f"{what} lies in {path}, which is not there for the workers {', '.join(blind[:3])}: put it on a disk "
                "that this machine and all workers share"
            )

    def check_folder(self, folder: Path) -> None:
        """Raise where workers do not see what this process writes into a folder."""
        if self.client is None:
            return
        if not self._workers():
            logger.warning("the cluster has no worker yet: the run waits for one")
        mark = folder / f".seen-{uuid4().hex}"
        mark.touch()
        try:
            blind = self._blind(mark)
        finally:
            mark.unlink(missing_ok=True)
        if blind:
            raise ScratchError(
                f"the folder {folder} is not there for the workers {', '.join(blind[:3])}: pass scratch= with a folder "
                "on a disk that this machine and all workers share"
            )

    def check_loads(self, value: Any, what: str) -> None:
        """Raise where the scheduler or a worker cannot load what tasks are to carry."""
        if self.client is None:
            return
        data = packed(value, what)
        lacking = {f"the worker {at}": found for at, found in self._everywhere(missing, data).items()}
        lacking["the scheduler"] = self.client.run_on_scheduler(missing, data)
        if at := [name for name, found in lacking.items() if found is not None]:
            raise told(lacking[at[0]], what, at)

    def _blind(self, path: Path) -> list[str]:
        return [at for at, sees in self._everywhere(os.path.exists, str(path)).items() if not sees]

    def _everywhere(self, function: Callable[..., Any], *args: Any, **options: Any) -> dict[str, Any]:
        """Call a function on every worker, and leave out those that die meanwhile."""
        if self.client is None:
            return {}
        from distributed.comm.core import CommClosedError

        found: dict[str, Any] = self.client.run(function, *args, on_error="return", **options)
        alive = {at: answer for at, answer in found.items() if not isinstance(answer, CommClosedError | TimeoutError)}
        for answer in alive.values():
            if isinstance(answer, Exception):
                raise answer
        return alive

    def map(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        stage: str,
        before: int = 0,
        *,
        at_once: int | None = None,
        on_device: bool = False,
    ) -> list[Any]:
        """Call ``function`` on every item and return the results in the items' order."""
        graph, keys = self.graph(function, items, stage)
        return self.run(graph, keys, stage, before, at_once=at_once, on_device=on_device)

    @staticmethod
    def graph(function: Callable[[Any], Any], items: Sequence[Any], stage: str) -> tuple[dict[Any, Any], list[Any]]:
        """Return a dask graph, and its keys, that holds the function once, whatever the number of items."""
        token = uuid4().hex
        shared, keys = f"common-{stage}-{token}", [f"{stage}-{token}-{i}" for i in range(len(items))]
        tasks = {key: (_call, shared, _Item(item)) for key, item in zip(keys, items, strict=True)}
        return {shared: function, **tasks}, keys

    def run(
        self,
        graph: Any,
        keys: Sequence[Any],
        stage: str,
        before: int = 0,
        total: int = 0,
        *,
        at_once: int | None = None,
        on_device: bool = False,
    ) -> list[Any]:
        """Compute the keys of a dask graph, telling of each that is done (``before`` of ``total`` were earlier).

        ``at_once``: tasks in flight here, if not ``n_jobs``. ``on_device``: each takes a GPU of its worker, where
        workers tell how many they have.
        """
        total = max(total, len(keys) + before)
        emit(Event(stage, before, total))
        if not keys:
            return []
        if self.client is not None:
            return self._distributed(graph, keys, stage, before, total, on_device)
        wanted, done = set(keys), before

        def posttask(key: Hashable, *_: object) -> None:
            nonlocal done
            if self._stopped.is_set():
                raise KeyboardInterrupt
            if key in wanted:
                done += 1
                emit(Event(stage, done, total))

        ours = (None, None, None, posttask, None)  # given, and not set for all: several images may run at once
        callbacks = [*Callback.active, ours]
        n = self.n_jobs if at_once is None else at_once
        if n == 1:
            return list(get_sync(graph, list(keys), callbacks=callbacks))
        return list(get_threaded(graph, list(keys), pool=self._pool(n), callbacks=callbacks))

    def _pool(self, n: int) -> ThreadPoolExecutor:
        with self._making:
            if n not in self._pools:
                self._pools[n] = ThreadPoolExecutor(n)
            return self._pools[n]

    def _workers(self) -> dict[str, Any]:
        assert self.client is not None
        workers: dict[str, Any] = self.client.run_on_scheduler(_told)
        return workers

    def _distributed(
        self, graph: Any, keys: Sequence[Any], stage: str, before: int, total: int, on_device: bool
    ) -> list[Any]:
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        assert self.client is not None
        tells = on_device and any(w["resources"].get(GPU) for w in self._workers().values())
        futures = self.client.get(graph, list(keys), sync=False, resources={GPU: 1} if tells else None)
        found = {}
        # taken from its worker at once, a result outlives that worker
        for future, result in as_completed(futures, with_results=True, raise_errors=False):
            if self._stopped.is_set():
                self.client.cancel(futures)
                raise KeyboardInterrupt
            if future.status == "error":
                error = future.exception()
                self.client.cancel(futures)
                if isinstance(error, KilledWorker):
                    raise ClusterError(
                        f"{stage}: workers died again and again of one task ({error}): see their logs; less memory a "
                        "task takes a smaller shard_size"
                    ) from error
                raise error
            if future.status == "cancelled":
                raise ClusterError(f"{stage}: the scheduler is gone, see its log")
            found[future.key] = result
            future.release()
            emit(Event(stage, before + len(found), total))
        return [found[future.key] for future in futures]


def _jobs(given: int | Mapping[str, int] | None) -> dict[str, int]:
    """Check ``n_jobs``."""
    if given is None:
        return {}
    jobs = dict(given) if isinstance(given, Mapping) else {"decode": given}
    for name, value in jobs.items():
        if name not in JOBS:
            raise InputError(f"n_jobs={given}: {name!r} is none of {', '.join(JOBS)}")
        least = 0 if name == "queue" else 1
        if not (is_whole(value) and value >= least):
            expected = f"a whole number from {least}" + ("" if name == "queue" else ", or None for all cores")
            raise InputError(f"n_jobs={given}, expected {expected}")
    return jobs


def _told(dask_scheduler: Any = None) -> dict[str, dict[str, Any]]:
    return {
        at: {
            "memory_limit": w.memory_limit,
            "memory": int(w.metrics.get("memory", 0)),
            "nthreads": w.nthreads,
            "resources": dict(w.resources),
        }
        for at, w in dask_scheduler.workers.items()
    }


def shared(value: Any) -> Any:
    """Return what a function of ``da.map_blocks`` and the like takes as an argument that is in the graph once."""
    return delayed(value, name=f"common-{uuid4().hex}", traverse=False)


@dataclass(frozen=True)
class _Item:
    """Keeps dask from reading anything into an item."""

    value: Any


def _call(function: Callable[[Any], Any], item: _Item) -> Any:
    return function(item.value)


def _active_client() -> Any:
    if "distributed" not in sys.modules:
        return None
    from distributed import get_client

    try:
        return get_client()
    except ValueError:
        return None


def cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
