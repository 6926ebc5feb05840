"""Flows of labels in three dimensions: the maps that a perfect network would give.

Source: Cellpose (Stringer et al. 2021), its flows of 3D masks. Each object lies in a box of its own with a margin of
one voxel and gets 6 (depth + height + width) steps: a unit of heat enters at its centre, the voxel nearest the mean of
its voxels, and every voxel becomes the mean of itself and its 6 neighbours, with nothing outside the object. The flow
is the gradient of the heat, brought to length 1. Cellpose gives all objects the steps of the largest; here the flows of
an object depend on its shape alone, and so not on the window in which it lies.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.voids import object_boxes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spatialdata_segment.testing.tissue import Tissue

INSIDE, OUTSIDE = 6.0, -6.0
"""The logit of the cell probability."""

_UNIT = 1e30
"""Heat that enters at a step, in float32: what is left of it far away must be above the least number."""


def volume_flows(labels: NDArray[np.integer], anisotropy: float = 1.0) -> NDArray[np.float32]:
    """Return the flows ``(3, z, y, x)`` (along z, y, x) of labels ``(z, y, x)``, 0 outside of objects.

    Parameters
    ----------
    labels
        0 is the background; the ids may be any.
    anisotropy
        Distance of two planes over that of two voxels: heat spreads, and flows have length 1, in space; along z a
        flow is counted in planes.
    """
    present, compact = np.unique(labels, return_inverse=True)
    compact = compact.reshape(labels.shape).astype(np.int32)
    if present[0] != 0:
        compact += 1
    flows = np.zeros((3, *labels.shape), np.float32)
    boxes = object_boxes(compact, int(compact.max(initial=0)))
    _flows(compact, boxes, np.float32(anisotropy), flows)
    return flows


def volume_maps(labels: NDArray[np.integer], anisotropy: float = 1.0) -> NDArray[np.float16]:
    """Return the maps ``(4, z, y, x)`` of labels: flows, 5 a px of a path's step, and the logit of the probability."""
    maps = np.empty((4, *labels.shape), np.float16)
    maps[:3] = 5 * volume_flows(labels, anisotropy)
    maps[3] = np.where(labels > 0, INSIDE, OUTSIDE)
    return maps


def tissue_maps(
    tissue: Tissue, box: Box, anisotropy: float = 1.0, of: Literal["cells", "nuclei"] = "cells"
) -> NDArray[np.float16]:
    """Return the maps of the cells, or the nuclei, of a 3D tissue in one box, the same as in the whole.

    Those that reach into the box are made whole, so that a volume of any size is had box by box.
    """
    reach = 2 * math.ceil(0.9 * tissue.cell_diameter)
    around = box.grow((math.ceil(reach / tissue.anisotropy), reach, reach), Box.whole(tissue.shape))
    inner = box.within(around)
    block = tissue.block(around)
    labels = np.asarray(block.cells if of == "cells" else block.nuclei)
    labels = np.where(np.isin(labels, np.unique(labels[inner])), labels, 0)
    return volume_maps(labels, anisotropy)[:, *inner].copy()


@kernel
def _flows(labels: Any, boxes: Any, anisotropy: Any, flows: Any) -> None:
    one = np.float32(1)
    along, room = one / (anisotropy * anisotropy), 0
    mean = one / (np.float32(5) + np.float32(2) * along)
    for k in range(len(boxes)):
        if boxes[k, 0] < boxes[k, 1]:
            size = (boxes[k, 1] - boxes[k, 0] + 2) * (boxes[k, 3] - boxes[k, 2] + 2) * (boxes[k, 5] - boxes[k, 4] + 2)
            room = max(room, size)
    heat, other, share = np.empty(room, np.float32), np.empty(room, np.float32), np.empty(room, np.float32)
    for k in range(len(boxes)):
        z0, z1, y0, y1, x0, x1 = boxes[k]
        if z0 >= z1:
            continue
        depth, height, width = z1 - z0 + 2, y1 - y0 + 2, x1 - x0 + 2
        plane, size = height * width, depth * height * width
        heat[:size] = 0
        other[:size] = 0
        share[:size] = 0
        n, sum_z, sum_y, sum_x = 0, 0, 0, 0
        for z in range(z0, z1):
            for y in range(y0, y1):
                for x in range(x0, x1):
                    if labels[z, y, x] == k + 1:
                        share[(z - z0 + 1) * plane + (y - y0 + 1) * width + x - x0 + 1] = mean
                        n, sum_z, sum_y, sum_x = n + 1, sum_z + z, sum_y + y, sum_x + x
        centre, nearest = 0, np.inf
        for z in range(z0, z1):
            for y in range(y0, y1):
                for x in range(x0, x1):
                    if labels[z, y, x] == k + 1:
                        distance = (z - sum_z / n) ** 2 + (y - sum_y / n) ** 2 + (x - sum_x / n) ** 2
                        if distance < nearest:
                            centre, nearest = (z - z0 + 1) * plane + (y - y0 + 1) * width + x - x0 + 1, distance
        for _ in range(3 * (depth + height + width)):
            _spread(heat[:size], other[:size], share[:size], centre, width, plane, along)
            _spread(other[:size], heat[:size], share[:size], centre, width, plane, along)
        for z in range(z0, z1):
            for y in range(y0, y1):
                for x in range(x0, x1):
                    if labels[z, y, x] == k + 1:
                        i = (z - z0 + 1) * plane + (y - y0 + 1) * width + x - x0 + 1
                        v = (np.float64(heat[i + plane]) - heat[i - plane]) / anisotropy
                        u = np.float64(heat[i + width]) - heat[i - width]
                        t = np.float64(heat[i + 1]) - heat[i - 1]
                        length = 1e-60 + np.sqrt(v * v + u * u + t * t)
                        flows[0, z, y, x] = v / length / anisotropy
                        flows[1, z, y, x] = u / length
                        flows[2, z, y, x] = t / length


@kernel
def _spread(heat: Any, out: Any, share: Any, centre: Any, width: Any, plane: Any, along: Any) -> None:
    """Let heat enter at the centre and spread once; ``share`` is that of each neighbour in the object, 0 outside."""
    heat[centre] += np.float32(_UNIT)
    n = heat.size - 2 * plane
    here, left, right = heat[plane : plane + n], heat[plane - 1 : plane - 1 + n], heat[plane + 1 : plane + 1 + n]
    above, below = heat[plane - width : plane - width + n], heat[plane + width : plane + width + n]
    before, after = heat[:n], heat[2 * plane : 2 * plane + n]
    target, part = out[plane : plane + n], share[plane : plane + n]
    for i in range(n):
        target[i] = (
            ((here[i] + (left[i] + right[i])) + (above[i] + below[i])) + along * (before[i] + after[i])
        ) * part[i]
