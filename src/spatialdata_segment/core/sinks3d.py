"""Where many paths end there is an object: the rule of `core.sinks` in a volume, and where a window may be wrong.

Seeds are voxels in which more than 10 paths end, and than which none of the 5 x 5 x 5 around has more; they grow 5
times into their 26 neighbours in which more than 2 end.

A voxel that a path from beyond may reach has an unknown number of ends, and may be a seed. It tells nothing of what
lies farther from it than growth goes, unless a seed grows there: only seeds, possible ones too, carry doubt on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.paths import LOST, widened
from spatialdata_segment.core.sinks import FEW, GROWTH, MANY, NEAR, count_ends
from spatialdata_segment.core.unresolved import UNRESOLVED

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Sinks(NamedTuple):
    """Objects of path ends.

    Attributes
    ----------
    labels
        ``(z, y, x)`` int32: 0, 1..n, or `UNRESOLVED`.
    seeds
        ``(n, 3)`` in raster order. A label may have no voxel: others have grown over all of it.
    areas
        ``(n,)`` voxels.
    complete
        ``(n,)`` bool: no path from beyond the window changes the object.
    """

    labels: NDArray[np.int32]
    seeds: NDArray[np.int64]
    areas: NDArray[np.int64]
    complete: NDArray[np.bool_]


def sinks(ends: NDArray[np.int32], marked: NDArray[np.bool_] | None = None) -> Sinks:
    """Make objects of path ends; takes 9 bytes a voxel besides.

    Parameters
    ----------
    ends
        ``(z, y, x)`` flat index of the voxel in which the path of a voxel ends; negative where there is none, or
        it is lost. Overwritten: it becomes the labels.
    marked
        ``(z, y, x)``: voxels in which paths from beyond may end. Overwritten. None: there are none.
    """
    counts = np.zeros(ends.shape, np.int32)
    count_ends(ends.reshape(-1), counts.reshape(-1))
    flat = _seeds(counts)
    seeds = np.stack(np.unravel_index(flat, ends.shape), axis=1).astype(np.int64)
    complete = np.ones(len(flat), np.bool_)
    unsure = np.zeros(0, np.bool_)
    if marked is not None:
        near = widened(marked, GROWTH)
        complete = ~near.reshape(-1)[flat]
        _doubt(near.reshape(-1), counts.reshape(-1), marked.reshape(-1))
        del near
        unsure = widened(marked, GROWTH).reshape(-1)
    grown = np.zeros(ends.shape, np.int32)
    order = np.lexsort((-flat, counts.reshape(-1)[flat]))
    _grow(counts, seeds, order, unsure, complete, grown)
    del counts
    areas = np.zeros(len(flat) + 1, np.int64)
    _take(ends.reshape(-1), grown.reshape(-1), unsure, areas)
    return Sinks(ends, seeds, areas[1:], complete)


@kernel
def _seeds(counts: Any) -> Any:
    depth, height, width = counts.shape
    found = [np.int64(0) for _ in range(0)]
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                here = counts[z, y, x]
                if here <= MANY:
                    continue
                greatest = True
                for a in range(max(0, z - NEAR), min(depth, z + NEAR + 1)):
                    for b in range(max(0, y - NEAR), min(height, y + NEAR + 1)):
                        for c in range(max(0, x - NEAR), min(width, x + NEAR + 1)):
                            if counts[a, b, c] > here:
                                greatest = False
                if greatest:
                    found.append(np.int64((z * height + y) * width + x))
    return np.array(found, np.int64)


@kernel
def _doubt(near: Any, counts: Any, marked: Any) -> None:
    """Mark the possible seeds of which it is not sure whether they are, or how they grow."""
    for i in range(len(marked)):
        marked[i] = near[i] and (marked[i] or counts[i] > MANY)


@kernel
def _grow(counts: Any, seeds: Any, order: Any, unsure: Any, complete: Any, grown: Any) -> None:
    """Grow the seeds, the last over all; those that grow into what is unsure are not complete."""
    depth, height, width = counts.shape
    side = 2 * GROWTH + 1
    mine = np.zeros((side, side, side), np.bool_)
    queue = np.empty((side * side * side, 3), np.int64)
    for k in order:
        z, y, x = seeds[k]
        mine[:] = False
        mine[GROWTH, GROWTH, GROWTH] = True
        queue[0] = GROWTH
        start, n = 0, 1
        for step in range(GROWTH + 1):
            stop = n
            for i in range(start, stop):
                p, q, r = queue[i]
                v, u, t = z + p - GROWTH, y + q - GROWTH, x + r - GROWTH
                grown[v, u, t] = k + 1
                if len(unsure) > 0 and unsure[(v * height + u) * width + t]:
                    complete[k] = False
                if step == GROWTH:
                    continue
                for a in range(-1, 2):
                    for b in range(-1, 2):
                        for c in range(-1, 2):
                            if not (0 <= v + a < depth and 0 <= u + b < height and 0 <= t + c < width):
                                continue
                            if not mine[p + a, q + b, r + c] and counts[v + a, u + b, t + c] > FEW:
                                mine[p + a, q + b, r + c] = True
                                queue[n] = p + a, q + b, r + c
                                n += 1
            start = stop


@kernel
def _take(ends: Any, grown: Any, unsure: Any, areas: Any) -> None:
    for i in range(len(ends)):
        end, label = ends[i], np.int32(0)
        if end >= 0:
            label = grown[end]
            if label == 0 and len(unsure) > 0 and unsure[end]:
                label = np.int32(UNRESOLVED)
        elif end == LOST:
            label = np.int32(UNRESOLVED)
        ends[i] = label
        if label > 0:
            areas[label] += 1
