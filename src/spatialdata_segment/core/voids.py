"""Voids of objects in a volume: what lies inside of one, on all sides, and is none of its own voxels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray


def object_boxes(labels: NDArray[np.int32], n: int) -> NDArray[np.int64]:
    """Return the bounding boxes ``(n, 6)`` of labels 1..n: first plane, plane after the last, and so for y and x.

    That of a label that is not there has nothing in it.
    """
    boxes = np.empty((n, 6), np.int64)
    boxes[:, 0::2] = max(labels.shape)
    boxes[:, 1::2] = 0
    _boxes(labels, boxes)
    return boxes


def fill_voids(
    labels: NDArray[np.int32], boxes: NDArray[np.int64], areas: NDArray[np.int64], fixed: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Fill, in place, the voids of objects with their labels.

    A void is a part of a box, connected by faces, that no path by faces leads out of without crossing the object: a
    hole of a plane with a way out above or below is none, as in Cellpose. Its background, and the voxels of
    objects that are not ``fixed``, become the object's; voxels of those that are stay theirs. Of objects that lie in
    each other the smaller is filled first.

    Parameters
    ----------
    labels
        ``(z, y, x)``, 1..n; what is below 0 stays.
    boxes
        ``(n, 6)`` as `object_boxes` has them.
    areas
        ``(n,)`` voxels.
    fixed
        ``(n,)``: the objects that are filled, and do not become another's.

    Returns
    -------
    ``(k, 2)`` pairs of an object and what lies in its voids: another (1..n), or a label below 0.
    """
    found = _pockets(labels, fixed)
    rank = np.empty(len(areas), np.int64)
    rank[np.lexsort((np.arange(len(areas)), areas))] = np.arange(len(areas))
    order = np.argsort(rank[found[:, 0] - 1], kind="stable")
    return np.array(_fill(labels, boxes, found[order], fixed), np.int64).reshape(-1, 2)


@kernel
def _boxes(labels: Any, boxes: Any) -> None:
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                label = labels[z, y, x]
                if label > 0:
                    box = boxes[label - 1]
                    box[0] = min(box[0], z)
                    box[1] = max(box[1], z + 1)
                    box[2] = min(box[2], y)
                    box[3] = max(box[3], y + 1)
                    box[4] = min(box[4], x)
                    box[5] = max(box[5], x + 1)


@kernel
def _pockets(labels: Any, fixed: Any) -> Any:
    """Return objects and voxels ``(k, 4)``: every void of an object has one in which its first voxel lies.

    The three neighbours before the first voxel of a void, in raster order, are the object's.
    """
    found = [(np.int64(0), np.int64(0), np.int64(0), np.int64(0)) for _ in range(0)]
    for z in range(1, labels.shape[0]):
        for y in range(1, labels.shape[1]):
            for x in range(1, labels.shape[2]):
                label = labels[z, y, x - 1]
                if label <= 0 or labels[z, y, x] == label:
                    continue
                if labels[z, y - 1, x] == label and labels[z - 1, y, x] == label and fixed[label - 1]:
                    found.append((np.int64(label), np.int64(z), np.int64(y), np.int64(x)))
    out = np.empty((len(found), 4), np.int64)
    for i in range(len(found)):
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = found[i]
    return out


@kernel
def _fill(labels: Any, boxes: Any, pockets: Any, fixed: Any) -> Any:
    """Walk from each pocket until it is out of the box, which most are at once, or all of the void is seen."""
    held = [(np.int64(0), np.int64(0)) for _ in range(0)]
    room = 0
    for i in range(len(pockets)):
        box = boxes[pockets[i, 0] - 1]
        room = max(room, (box[1] - box[0]) * (box[3] - box[2]) * (box[5] - box[4]))
    walk, stack = np.empty(room, np.int32), np.empty(room, np.int32)
    before = 0
    for i in range(len(pockets)):
        k = pockets[i, 0]
        z0, z1, y0, y1, x0, x1 = boxes[k - 1]
        depth, height, width = z1 - z0, y1 - y0, x1 - x0
        if k != before:
            walk[: depth * height * width] = 0
            before = k
        start = ((pockets[i, 1] - z0) * height + pockets[i, 2] - y0) * width + pockets[i, 3] - x0
        if walk[start] != 0:
            continue
        walk[start] = i + 1
        stack[0] = start
        n, is_open = 1, False
        while n > 0 and not is_open:
            n -= 1
            here = stack[n]
            z, y, x = here // (height * width), here // width % height, here % width
            for side in range(6):
                a = z + (side == 0) - (side == 1)
                b = y + (side == 2) - (side == 3)
                c = x - (side == 4) + (side == 5)
                if a < 0 or b < 0 or c < 0 or a >= depth or b >= height or c >= width:
                    is_open = True
                    continue
                there = (a * height + b) * width + c
                if walk[there] == i + 1 or labels[z0 + a, y0 + b, x0 + c] == k:
                    continue
                if walk[there] != 0:  # an earlier walk that came out was here
                    is_open = True
                    continue
                walk[there] = i + 1
                stack[n] = there
                n += 1
        if is_open:
            continue
        for here in range(depth * height * width):
            if walk[here] != i + 1:
                continue
            z, y, x = z0 + here // (height * width), y0 + here // width % height, x0 + here % width
            label = labels[z, y, x]
            if label != 0 and (len(held) == 0 or held[-1] != (k, np.int64(label))):
                held.append((k, np.int64(label)))
            if label == 0 or (label > 0 and not fixed[label - 1]):
                labels[z, y, x] = k
    return held
