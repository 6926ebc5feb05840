"""Where many paths end there is an object: seeds, their growth, and the pixels whose paths end in them.

Source: Cellpose (Stringer et al. 2021). Paths are counted by the pixel in which they end. A pixel in which more
than 10 end, and than which none of the 5 x 5 around has more, is a seed; it grows 5 times into its 8 neighbours
in which more than 2 end. Where two grow over each other the one with more paths wins, then the first in raster
order. A pixel belongs to the object in which its path ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANY, FEW = 10, 2
"""More paths than this end in a seed; more than this in a pixel that it grows into."""

NEAR = 2
GROWTH = 5
SEES = 2 * GROWTH
"""px: paths that end farther away do not matter for what a path that ends here belongs to."""


def sinks(ends: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Make objects of path ends.

    Parameters
    ----------
    ends
        ``(y, x)`` flat index of the pixel in which the path of a pixel ends; negative where there is none.

    Returns
    -------
    ``(y, x)`` int32 labels, 1..n, and the seeds ``(n, 2)`` in raster order. A label may have no pixel: others
    have grown over all of it.
    """
    counts = np.zeros(ends.shape, np.int32)
    count_ends(ends.reshape(-1), counts.reshape(-1))
    seeds = _seeds(counts)
    flat = seeds[:, 0] * ends.shape[1] + seeds[:, 1]
    order = np.lexsort((-flat, counts.reshape(-1)[flat]))
    grown = np.zeros(ends.shape, np.int32)
    _grow(counts, seeds, order, grown)
    labels = np.zeros(ends.shape, np.int32)
    _take(ends.reshape(-1), grown.reshape(-1), labels.reshape(-1))
    return labels, seeds


@kernel
def count_ends(ends: Any, counts: Any) -> None:
    """Add to each pixel, of any number of axes, flattened, the paths that end in it."""
    for i in range(ends.size):
        if ends[i] >= 0:
            counts[ends[i]] += 1


@kernel
def _seeds(counts: Any) -> Any:
    height, width = counts.shape
    found = np.empty((counts.size // (MANY + 1) + 1, 2), np.int64)
    n = 0
    for y in range(height):
        for x in range(width):
            here = counts[y, x]
            if here <= MANY:
                continue
            greatest = True
            for a in range(max(0, y - NEAR), min(height, y + NEAR + 1)):
                for b in range(max(0, x - NEAR), min(width, x + NEAR + 1)):
                    if counts[a, b] > here:
                        greatest = False
            if greatest:
                found[n, 0], found[n, 1] = y, x
                n += 1
    return found[:n].copy()


@kernel
def _grow(counts: Any, seeds: Any, order: Any, grown: Any) -> None:
    height, width = counts.shape
    side = 2 * GROWTH + 1
    mine = np.zeros((side, side), np.int64)
    for k in order:
        y, x = seeds[k]
        mine[:] = 0
        mine[GROWTH, GROWTH] = 1
        for step in range(1, GROWTH + 1):
            for a in range(GROWTH - step, GROWTH + step + 1):
                for b in range(GROWTH - step, GROWTH + step + 1):
                    v, u = y + a - GROWTH, x + b - GROWTH
                    if mine[a, b] or v < 0 or u < 0 or v >= height or u >= width or counts[v, u] <= FEW:
                        continue
                    for p in range(max(0, a - 1), min(side, a + 2)):
                        for q in range(max(0, b - 1), min(side, b + 2)):
                            if 0 < mine[p, q] <= step:
                                mine[a, b] = step + 1
        for a in range(side):
            for b in range(side):
                if mine[a, b]:
                    grown[y + a - GROWTH, x + b - GROWTH] = k + 1


@kernel
def _take(ends: Any, grown: Any, labels: Any) -> None:
    for i in range(ends.size):
        if ends[i] >= 0:
            labels[i] = grown[ends[i]]
