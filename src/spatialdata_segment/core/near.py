"""Which of the boxes that were put down meet another one: cells of a grid, with lists of boxes; for kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEAST_CELL = 8
"""px."""
_MOST_CELLS = 1 << 22


def make_grid(boxes: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
    """Return an empty grid for boxes ``(n, 2 * ndim)``, starts, then stops.

    Returns
    -------
    Side and number of cells along each axis, the first pixel; the first entry of each cell, the next of each entry, the
    box of each; how many there are, and the last visit; the visit in which a box was last seen.
    """
    n, ndim = len(boxes), boxes.shape[1] // 2
    low = boxes[:, :ndim].min(axis=0, initial=1 << 40) if n else np.zeros(ndim, np.int64)
    high = boxes[:, ndim:].max(axis=0, initial=0) if n else np.ones(ndim, np.int64)
    size = (boxes[:, ndim:] - boxes[:, :ndim]).mean(axis=0) if n else np.ones(ndim)
    side = np.maximum(_LEAST_CELL, np.ceil(size)).astype(np.int64)
    while np.prod((high - low) // side + 1.0) > _MOST_CELLS:
        side *= 2
    cells = (high - low) // side + 1
    room = (
        int(((boxes[:, ndim:] - 1 - low) // side - (boxes[:, :ndim] - low) // side + 1).prod(axis=1).sum()) if n else 0
    )
    return (
        np.stack([side, cells, low]),
        np.full(int(np.prod(cells)), -1, np.int64),
        np.empty(room, np.int64),
        np.empty(room, np.int64),
        np.zeros(2, np.int64),
        np.full(n, -1, np.int64),
    )


@kernel
def put(grid: Any, boxes: Any, i: int) -> None:
    """Put a box down."""
    layout, head, following, item, count, _ = grid
    first, last = _span(layout, boxes, i)
    for z in range(first[0], last[0] + 1):
        for y in range(first[1], last[1] + 1):
            for x in range(first[2], last[2] + 1):
                cell = _cell(layout, z, y, x)
                at = count[0]
                item[at], following[at], head[cell] = i, head[cell], at
                count[0] += 1


@kernel
def near(grid: Any, boxes: Any, i: int, found: Any) -> int:
    """Write which boxes that were put down meet box ``i`` into ``found``; return how many."""
    layout, head, following, item, count, seen = grid
    ndim = boxes.shape[1] // 2
    first, last = _span(layout, boxes, i)
    count[1] += 1
    n = 0
    for z in range(first[0], last[0] + 1):
        for y in range(first[1], last[1] + 1):
            for x in range(first[2], last[2] + 1):
                at = head[_cell(layout, z, y, x)]
                while at >= 0:
                    j = item[at]
                    at = following[at]
                    if seen[j] == count[1]:
                        continue
                    seen[j] = count[1]
                    meets = True
                    for k in range(ndim):
                        if boxes[i, k] >= boxes[j, ndim + k] or boxes[j, k] >= boxes[i, ndim + k]:
                            meets = False
                    if meets:
                        found[n] = j
                        n += 1
    return n


@kernel
def _span(layout: Any, boxes: Any, i: int) -> Any:
    """Return the first and the last cell of a box along ``(z, y, x)``."""
    ndim = layout.shape[1]
    first, last = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for k in range(ndim):
        first[3 - ndim + k] = (boxes[i, k] - layout[2, k]) // layout[0, k]
        last[3 - ndim + k] = (boxes[i, ndim + k] - 1 - layout[2, k]) // layout[0, k]
    return first, last


@kernel
def _cell(layout: Any, z: int, y: int, x: int) -> Any:
    ndim = layout.shape[1]
    return (z * layout[1, ndim - 2] + y) * layout[1, ndim - 1] + x
