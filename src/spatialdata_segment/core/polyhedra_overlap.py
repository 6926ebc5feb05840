"""How much two star-convex polyhedra overlap, decided as StarDist decides it, as far as counting voxels can tell.

StarDist compares the smaller volume with bounds of the intersection, the cheap ones first: boxes and inner spheres,
then the volume of what sees all of both objects (kernels) from below and that of convex hulls from above, by Qhull, and
at last the voxels that lie in both. Here voxels are counted first. Where their number is clear, the bounds cannot say
anything else; where it is close, Qhull is to be asked (`core.polyhedra_hulls`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.polyhedra import holds
from spatialdata_segment.core.star_overlap import ASK, NO, YES

_CLEAR, _FEW = 1.1, 6.0
"""Factor, and voxels, by which a count must differ from the threshold to be clear."""
_SURE = 1.01


@kernel
def overlaps(polyhedra: Any, i: int, j: int, threshold: Any) -> int:
    """Tell whether the intersection of two polyhedra is more than ``threshold`` of the smaller one: `NO`, `YES`, `ASK`.

    ``polyhedra``: `Polyhedra.fields`.
    """
    _, bbox, volume, inner, points, _, _, _ = polyhedra
    least = float(min(volume[i], volume[j])) + 1e-10
    if not boxes_exceed(bbox[i], bbox[j], least, threshold):
        return NO
    d = 0.0
    for k in range(3):
        d += float(points[i, k] - points[j, k]) ** 2
    if _lens(inner[i], inner[j], math.sqrt(d)) > _SURE * threshold * least:
        return YES
    limit = float(threshold) * least
    n = shared_voxels(polyhedra, i, j, _CLEAR * limit + _FEW)
    if n > _CLEAR * limit + _FEW:
        return YES
    return ASK if n >= limit / _CLEAR - _FEW else NO


@kernel
def boxes_exceed(a: Any, b: Any, least: float, threshold: Any) -> Any:
    """Tell whether the boxes of two polyhedra share more than ``threshold`` of the smaller volume."""
    shared = np.float32(1)
    for k in range(3):
        shared *= np.float32(max(0, min(a[2 * k + 1], b[2 * k + 1]) - max(a[2 * k], b[2 * k])))
    if shared < 1e-10:
        return False
    share: Any = min(1.0, shared / least)
    return np.float32(share) > np.float32(threshold)


@kernel
def shared_voxels(polyhedra: Any, i: int, j: int, enough: float) -> int:
    """Count the voxels that lie in both of two polyhedra, until there are more than ``enough``."""
    corners, bbox, _, _, points, faces, first, listed = polyhedra
    p, n = np.empty(3, np.float32), 0
    for z in range(max(bbox[i, 0], bbox[j, 0]), min(bbox[i, 1], bbox[j, 1]) + 1):
        for y in range(max(bbox[i, 2], bbox[j, 2]), min(bbox[i, 3], bbox[j, 3]) + 1):
            for x in range(max(bbox[i, 4], bbox[j, 4]), min(bbox[i, 5], bbox[j, 5]) + 1):
                p[0], p[1], p[2] = z, y, x
                if holds(p, points[i], corners[i], faces, first, listed) and holds(
                    p, points[j], corners[j], faces, first, listed
                ):
                    n += 1
                    if n > enough:
                        return n
    return n


@kernel
def _lens(r: float, s: float, d: float) -> float:
    """Return the volume that two balls share."""
    if r <= 0 or s <= 0 or d >= r + s:
        return 0.0
    if d <= abs(r - s):
        return 4.0 / 3.0 * math.pi * min(r, s) ** 3
    return math.pi * (r + s - d) ** 2 * (d * d + 2 * d * (r + s) - 3 * (r - s) ** 2) / (12 * d)
