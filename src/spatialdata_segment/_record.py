"""The record of a run: what belongs to that run and not to its result, so that equal results are equal bytes.

It holds times, memory, host, the shard plan and what happened at its seams. It is written beside the scratch and into
the store, outside of its elements, and goes with the object in its ``attrs``, which `SpatialData.write` writes along.
"""

from __future__ import annotations

import json
import logging
import platform
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import psutil

from spatialdata_segment._journal import DOT
from spatialdata_segment.engine.events import Event, listen, prefix
from spatialdata_segment.engine.scratch import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spatialdata import SpatialData

    from spatialdata_segment._request import Request
    from spatialdata_segment.engine.executor import Executor
    from spatialdata_segment.engine.mask import Mask
    from spatialdata_segment.engine.scratch import Scratch

logger = logging.getLogger(__name__)

_PACKAGES = "spatialdata", "dask", "zarr", "anndata", "distributed", "torch", "cellpose"
"""What a run may depend on besides what decides its result; of those that are loaded the version is kept."""

ATTRS_KEY = "spatialdata_segment"
"""Of ``sdata.attrs``: the records of the results, by their prefix."""
_attrs = Lock()
"""Of several images each is at work in a thread."""


@dataclass
class Clock:
    """Listens to a run: when its stages began and ended, and the memory of this process.

    Attributes
    ----------
    started
        Seconds since the epoch.
    stages
        Stage -> seconds at its first and last event, and its tasks.
    memory
        Largest resident memory seen when a task ended, bytes.
    """

    started: float = field(default_factory=time.time)
    stages: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    memory: int = 0
    _of: str = field(default_factory=prefix)
    _process: psutil.Process = field(default_factory=psutil.Process)
    _before: int = field(default_factory=lambda: peak_memory())

    def note(self, event: Event) -> None:
        """Take notice of an event."""
        if not event.stage.startswith(self._of):
            return
        now, name = time.time(), event.stage.removeprefix(self._of)
        self.stages[name] = (self.stages.get(name, (now,))[0], now, event.total)
        self.memory = max(self.memory, self._process.memory_info().rss)

    def peak(self) -> int:
        """Return the most bytes that the process held during the run, as far as that is known."""
        after = peak_memory()
        return after if after > self._before else max(self.memory, self._process.memory_info().rss)

    def seconds(self) -> list[dict[str, Any]]:
        """Return name, seconds and tasks of each stage, in order."""
        return [{"stage": s, "seconds": round(b - a, 3), "tasks": n} for s, (a, b, n) in self.stages.items()]


@contextmanager
def clock() -> Iterator[Clock]:
    """Listen to the run inside the ``with`` block."""
    found = Clock()
    with listen(found.note):
        yield found


def peak_memory() -> int:
    """Return the bytes that this process held at most."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write_record(
    sdata: SpatialData,
    request: Request,
    folder: Scratch,
    store: Path | None,
    masks: Mapping[str, Mask],
    executor: Executor,
    timed: Clock,
    name: str = "run",
) -> None:
    """Keep the record of a run that is through: beside a scratch that was named, in the store, with the object.

    That of a result is named "run"; others say of what they are, and are kept in files alone.
    """
    plans = {name: mask.labels.plan for name, mask in masks.items()}
    record = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(timed.started)),
        "seconds": round(time.time() - timed.started, 3),
        "stages": timed.seconds(),
        "memory_bytes": timed.peak(),
        "host": platform.node(),
        "platform": platform.platform(),
        "executor": executor.where,
        "n_jobs": {"decode": executor.n_jobs, "queue": executor.queue, "write": executor.writers},
        "devices": list(request.devices),
        "shape": list(request.info.shape),
        "plan": {
            m: {"grid": list(p.grid), "halo": list(p.halo), "chunks": [list(c) for c in p.chunks]}
            for m, p in plans.items()
        },
        "evidence": {m: mask.evidence for m, mask in masks.items()},
        "places": {m: mask.places for m, mask in masks.items()},
        "parameters": {**request.parameters(), "options": request.options},
        "versions": _versions(),
    }
    logger.info("segmentation finished: %s", record)
    plain: dict[str, Any] = json.loads(json.dumps(record))
    if name == "run":
        with _attrs:  # a new dict: objects that were made from this one share its attrs
            sdata.attrs = {**sdata.attrs, ATTRS_KEY: {**sdata.attrs.get(ATTRS_KEY, {}), request.key_added: plain}}
    if folder.given:
        write_json(folder.folder.with_name(f"{folder.folder.name}.{name}.json"), record)
    if store is not None:
        (store / DOT).mkdir(exist_ok=True)
        write_json(store / DOT / f"{request.key_added}.{name}.json", record)


def read_record(sdata: SpatialData, key: str, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record of the run that made a result; None where it is not known.

    Parameters
    ----------
    sdata
        Holds the result.
    key
        Its prefix, ``key_added``.
    parameters
        What the result's table says of how it was made; a record of another run is none of this result.
    """
    for record in (_in_store(sdata, key), sdata.attrs.get(ATTRS_KEY, {}).get(key)):
        if isinstance(record, dict) and "stages" in record:
            said = record.get("parameters", {})
            if all(parameters.get(name) == value for name, value in said.items()):
                return record
    return None


def _in_store(sdata: SpatialData, key: str) -> Any:
    """Return what the object's store has of the last run; None where that is nothing."""
    if sdata.path is None:
        return None
    try:
        return json.loads((Path(sdata.path) / DOT / f"{key}.run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        if name in sys.modules:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
    return found
