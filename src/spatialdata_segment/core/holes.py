"""Holes of objects: what lies inside of one and is none of its own pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray


def fill_holes(
    labels: NDArray[np.int32], boxes: NDArray[np.int64], areas: NDArray[np.int64], fixed: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Fill, in place, the holes of objects with their labels.

    A hole is a part of a box, connected by edges, that no path by edges leads out of without crossing the
    object. Its background, and the pixels of objects that are not ``fixed``, become the object's; pixels of those that
    are stay theirs. Of objects that lie in each other the smaller is filled first.

    Parameters
    ----------
    labels
        ``(y, x)``, 1..n; what is below 0 stays.
    boxes
        ``(n, 4)`` as `core.heat.object_boxes` has them.
    areas
        ``(n,)`` px.
    fixed
        ``(n,)``: the objects that are filled, and do not become another's.

    Returns
    -------
    ``(k, 2)`` pairs of an object and what lies in its holes: another (1..n), or a label below 0.
    """
    order = np.lexsort((np.arange(len(areas)), areas))
    return np.array(_fill(labels, boxes, order[fixed[order]], fixed), np.int64).reshape(-1, 2)


@kernel
def _fill(labels: Any, boxes: Any, order: Any, fixed: Any) -> Any:
    held = [(np.int64(0), np.int64(0)) for _ in range(0)]
    room = 0
    for k in order:
        room = max(room, (boxes[k, 1] - boxes[k, 0] + 2) * (boxes[k, 3] - boxes[k, 2] + 2))
    outside = np.zeros(room, np.bool_)
    stack = np.empty(room, np.int64)
    for k in order:
        y0, y1, x0, x1 = boxes[k]
        if y0 >= y1:
            continue
        height, width = y1 - y0 + 2, x1 - x0 + 2
        size = height * width
        if not _is_ringed(labels, y0, y1, x0, x1, k + 1):
            continue
        outside[:size] = False
        outside[0] = True
        stack[0] = 0
        n = 1
        while n > 0:
            n -= 1
            y, x = stack[n] // width, stack[n] % width
            for side in range(4):
                a = y + (side == 0) - (side == 1)
                b = x + (side == 2) - (side == 3)
                if a < 0 or b < 0 or a >= height or b >= width or outside[a * width + b]:
                    continue
                inner = 0 < a < height - 1 and 0 < b < width - 1
                if inner and labels[y0 + a - 1, x0 + b - 1] == k + 1:
                    continue
                outside[a * width + b] = True
                stack[n] = a * width + b
                n += 1
        for y in range(y0, y1):
            for x in range(x0, x1):
                label = labels[y, x]
                if outside[(y - y0 + 1) * width + x - x0 + 1] or label == k + 1:
                    continue
                if label != 0 and (len(held) == 0 or held[-1] != (k + 1, label)):
                    held.append((np.int64(k + 1), np.int64(label)))
                if label == 0 or (label > 0 and not fixed[label - 1]):
                    labels[y, x] = k + 1
    return held


@kernel
def _is_ringed(labels: Any, y0: Any, y1: Any, x0: Any, x1: Any, label: Any) -> Any:
    """Whether a row of the object has a gap: without one there is no hole."""
    for y in range(y0 + 1, y1 - 1):
        state = 0
        for x in range(x0, x1):
            mine = labels[y, x] == label
            if mine and state == 2:
                return True
            if mine:
                state = 1
            elif state == 1:
                state = 2
    return False
