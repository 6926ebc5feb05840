"""What all shards count, brought together where a shard asks: ends of paths, for methods that `tally`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.engine.entries import Entry, write_entry
from spatialdata_segment.engine.shard import shard_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from spatialdata_segment.engine.shard import Report


@dataclass(frozen=True)
class Tallies:
    """The counts of all shards; small, it travels with the tasks.

    Attributes
    ----------
    index
        An entry: which shards there are, and the windows in which they have counted.
    folder
        Their entries.
    """

    index: Path
    folder: Path

    @classmethod
    def of(cls, reports: Sequence[Report], index: Path, folder: Path) -> Tallies:
        """Write the index of what some shards have counted."""
        windows = [[*r.window.start, *r.window.stop] for r in reports]
        write_entry(index, {"shards": np.array([r.index for r in reports]), "windows": np.array(windows)})
        return cls(index, folder)

    def read(self, box: Box) -> NDArray[np.int32]:
        """Return the sums of the counts in a box, ``([z], y, x)``."""
        status = self.index.stat()
        shards, windows = _index(self.index, (status.st_mtime_ns, status.st_size, status.st_ino))
        out = np.zeros(box.shape, np.int32)
        for shard, window in zip(shards, windows, strict=True):
            common = box.intersect(window)
            if common.size:
                inner = Box(*(tuple(np.subtract(side, window.start).tolist()) for side in (common.start, common.stop)))
                out[common.within(box)] += Entry(shard_path(self.folder, shard)).read("counts", inner)
        return out


@lru_cache(maxsize=4)
def _index(path: Path, _state: tuple[int, ...]) -> tuple[list[int], list[Box]]:
    entry = Entry(path)
    windows = entry.read("windows").tolist()
    return entry.read("shards").tolist(), [Box(tuple(w[: len(w) // 2]), tuple(w[len(w) // 2 :])) for w in windows]
