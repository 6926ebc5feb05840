"""Where many paths end there is an object: the rule of `core.sinks` in a volume.

Seeds are voxels in which more than 10 paths end, and than which none of the 5 x 5 x 5 around has more; they grow 5
times into their 26 neighbours in which more than 2 end. What a voxel belongs to follows from the end of its own path
and from how many end around that. A window that is told these numbers, of all paths of the volume, knows its objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.paths import LOST
from spatialdata_segment.core.sinks import FEW, GROWTH, MANY, NEAR, count_ends
from spatialdata_segment.core.unresolved import UNRESOLVED

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEEN = 4 * GROWTH + NEAR
"""px around a window in which ends must be counted: seeds grow into it, over these others, over these others yet."""


class Grown(NamedTuple):
    """Seeds, and what they have grown over.

    Attributes
    ----------
    labels
        ``(z, y, x)`` int32: 0, 1..n.
    seeds
        ``(n, 3)`` in raster order.
    areas
        ``(n,)`` int64 voxels: paths that end in what a seed has in the end. Others may have grown over all of it.
    """

    labels: NDArray[np.int32]
    seeds: NDArray[np.int64]
    areas: NDArray[np.int64]


def counted(ends: NDArray[np.int32], shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Return how many paths end in each voxel of a field of a shape.

    Parameters
    ----------
    ends
        Flat indices of voxels of the field; negative where there is none, or it is lost.
    shape
        ``(z, y, x)``.
    """
    counts = np.zeros(shape, np.int32)
    count_ends(ends.reshape(-1), counts.reshape(-1))
    return counts


def grow(counts: NDArray[np.int32]) -> Grown:
    """Make seeds of counted ends ``(z, y, x)``, and let them grow; takes 4 bytes a voxel besides."""
    flat = _seeds(counts)
    seeds = np.stack(np.unravel_index(flat, counts.shape), axis=1).astype(np.int64)
    grown = np.zeros(counts.shape, np.int32)
    order = np.lexsort((-flat, counts.reshape(-1)[flat]))
    _grow(counts, seeds, order, grown)
    areas = np.zeros(len(flat) + 1, np.int64)
    _add_up(grown.reshape(-1), counts.reshape(-1), areas)
    return Grown(grown, seeds, areas[1:])


def take(ends: NDArray[np.int32], grown: NDArray[np.int32], n: int) -> NDArray[np.int64]:
    """Make labels of ends, in their place, and return the voxels of each of ``n`` labels.

    Parameters
    ----------
    ends
        ``(z, y, x)``: flat indices in ``grown``; `UNRESOLVED` becomes of those that are lost.
    grown
        Labels 0..n, of any shape.
    """
    areas = np.zeros(n + 1, np.int64)
    _take(ends.reshape(-1), grown.reshape(-1), areas)
    return areas[1:]


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
def _grow(counts: Any, seeds: Any, order: Any, grown: Any) -> None:
    """Grow the seeds, the last over all."""
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
def _add_up(grown: Any, counts: Any, areas: Any) -> None:
    for i in range(len(grown)):
        if grown[i] > 0:
            areas[grown[i]] += counts[i]


@kernel
def _take(ends: Any, grown: Any, areas: Any) -> None:
    for i in range(len(ends)):
        end, label = ends[i], np.int32(0)
        if end >= 0:
            label = grown[end]
        elif end == LOST:
            label = np.int32(UNRESOLVED)
        ends[i] = label
        if label > 0:
            areas[label] += 1
