"""The flows that an object's shape has: the direction of heat that spreads from its centre.

Source: Stringer et al., "Cellpose: a generalist algorithm for cellular segmentation", Nature Methods 2021.
Each object lies in a box of its own with a margin of one pixel, and gets 2 (height + width) steps: a unit of
heat enters at its centre, the pixel nearest the mean of its pixels, and every pixel becomes the mean of its
3 x 3 neighbourhood, with nothing outside the object. The flow is the gradient of the heat, brought to length 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

_UNIT = 1e30
"""Heat that enters at a step, in float32: what is left of it far away must be above the least number."""


def label_flows(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return the unit flows ``(2, y, x)`` (along y, along x) of labels ``(y, x)``, 0 outside of objects."""
    present, compact = np.unique(labels, return_inverse=True)
    compact = compact.reshape(labels.shape).astype(np.int32)
    if present[0] != 0:
        compact += 1
    flows = np.zeros((2, *labels.shape), np.float32)
    boxes = object_boxes(compact, int(compact.max(initial=0)))
    _flows(compact, boxes, flows, np.zeros(0), np.ones(1))
    return flows


def flow_errors(
    labels: NDArray[np.int32], boxes: NDArray[np.int64], flows: NDArray[np.float32], *, exact: bool = False
) -> NDArray[np.float64]:
    """Return how far predicted flows are from those of the shapes: the mean squared difference over each object.

    Parameters
    ----------
    labels
        ``(y, x)``: 1..n the objects; what is not above 0 is none.
    boxes
        ``(n, 4)``: first row, row after the last, first column, column after the last; empty ones are left out.
    flows
        ``(2, y, x)`` of unit length where they are sure.
    exact
        Spread the heat in float64, as Cellpose does; in float32 it takes half the time.

    Returns
    -------
    ``(n,)``: 0 means the same, 4 the opposite.
    """
    errors = np.zeros(len(boxes))
    _flows(labels, boxes, flows, errors, np.ones(1) if exact else np.full(1, _UNIT, np.float32))
    return errors


def object_boxes(labels: NDArray[np.int32], n: int) -> NDArray[np.int64]:
    """Return the bounding boxes ``(n, 4)`` of labels 1..n; of one that is not there a box with nothing in it."""
    boxes = np.empty((n, 4), np.int64)
    boxes[:, 0::2] = max(labels.shape)
    boxes[:, 1::2] = 0
    _boxes(labels, boxes)
    return boxes


@kernel
def _boxes(labels: Any, boxes: Any) -> None:
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            label = labels[y, x]
            if label > 0:
                box = boxes[label - 1]
                box[0] = min(box[0], y)
                box[1] = max(box[1], y + 1)
                box[2] = min(box[2], x)
                box[3] = max(box[3], x + 1)


@kernel
def _flows(labels: Any, boxes: Any, flows: Any, errors: Any, unit: Any) -> None:
    """Write the flows of the objects, or, where ``errors`` has a place for each, compare them with ``flows``.

    ``unit`` is the heat of a step, and has its dtype.
    """
    room = 0
    for k in range(len(boxes)):
        if boxes[k, 0] < boxes[k, 1]:
            room = max(room, (boxes[k, 1] - boxes[k, 0] + 2) * (boxes[k, 3] - boxes[k, 2] + 2))
    heat, rows, share = np.empty(room, unit.dtype), np.empty(room, unit.dtype), np.empty(room, unit.dtype)
    ninth = unit.dtype.type(1.0 / 9.0)
    for k in range(len(boxes)):
        y0, y1, x0, x1 = boxes[k]
        if y0 >= y1:
            continue
        height, width = y1 - y0 + 2, x1 - x0 + 2
        size = height * width
        for i in range(size):
            heat[i] = rows[i] = share[i] = 0.0
        n, sum_y, sum_x = 0, 0, 0
        for y in range(y0, y1):
            for x in range(x0, x1):
                if labels[y, x] == k + 1:
                    share[(y - y0 + 1) * width + x - x0 + 1] = ninth
                    n += 1
                    sum_y += y
                    sum_x += x
        if n == 0:
            continue
        mean_y, mean_x = sum_y / n, sum_x / n
        centre, nearest = 0, np.inf
        for y in range(y0, y1):
            for x in range(x0, x1):
                if labels[y, x] == k + 1:
                    distance = (y - mean_y) ** 2 + (x - mean_x) ** 2
                    if distance < nearest:
                        centre, nearest = (y - y0 + 1) * width + x - x0 + 1, distance
        _spread(heat[:size], rows[:size], share[:size], centre, width, 2 * (height + width), unit[0])
        total = 0.0
        for y in range(y0, y1):
            for x in range(x0, x1):
                if labels[y, x] == k + 1:
                    i = (y - y0 + 1) * width + x - x0 + 1
                    along_y = np.float64(heat[i + width]) - np.float64(heat[i - width])
                    along_x = np.float64(heat[i + 1]) - np.float64(heat[i - 1])
                    length = 1e-60 + np.sqrt(along_y * along_y + along_x * along_x)
                    if len(errors) > 0:
                        total += (along_y / length - flows[0, y, x]) ** 2 + (along_x / length - flows[1, y, x]) ** 2
                    else:
                        flows[0, y, x] = along_y / length
                        flows[1, y, x] = along_x / length
        if len(errors) > 0:
            errors[k] = total / n


@kernel
def _spread(heat: Any, rows: Any, share: Any, centre: Any, width: Any, steps: Any, unit: Any) -> None:
    """Let heat enter at the centre and spread; ``share`` is 1/9 in the object and 0 outside."""
    size = heat.size
    inner = size - 2 * width
    before, here, after, across = heat[: size - 2], heat[1 : size - 1], heat[2:], rows[1 : size - 1]
    above, level, below = rows[:inner], rows[width : width + inner], rows[2 * width :]
    target, part = heat[width : width + inner], share[width : width + inner]
    for _ in range(steps):
        heat[centre] += unit
        for i in range(size - 2):
            across[i] = before[i] + here[i] + after[i]
        for i in range(inner):
            target[i] = (above[i] + level[i] + below[i]) * part[i]
