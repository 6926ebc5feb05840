"""What Qhull says of two polyhedra whose shared voxels are close to the threshold: StarDist's chain of bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import ConvexHull, HalfspaceIntersection, QhullError

from spatialdata_segment.core.polyhedra_overlap import shared_voxels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spatialdata_segment.core.polyhedra import Polyhedra

_NO_HULL = 1e10
"""Stands for the volume that Qhull cannot tell, from above."""


def hulls_overlap(polyhedra: Polyhedra, i: int, j: int, threshold: float) -> bool:
    """Tell whether two polyhedra share more than ``threshold`` of the smaller volume; the more probable one first."""
    least = float(min(polyhedra.volume[i], polyhedra.volume[j])) + 1e-10
    limit = np.float32(threshold)
    a, b = polyhedra.corners[i], polyhedra.corners[j]
    middle = np.float32(0.5) * (polyhedra.points[i] + polyhedra.points[j])
    planes = np.concatenate([_kernel_planes(a, polyhedra.faces), _kernel_planes(b, polyhedra.faces)])
    if np.float32(_common(planes, middle, 0.0) / least) > limit:
        return True
    try:
        hulls = np.concatenate([ConvexHull(c.astype(np.float64)).equations for c in (a, b)])
    except QhullError:
        upper = _NO_HULL
    else:
        upper = _common(hulls, middle, _NO_HULL)
    if np.float32(upper / least) <= limit:
        return False
    enough = float(np.float32(least * float(limit)))
    return bool(np.float32(shared_voxels(polyhedra.fields, i, j, enough) / least) > limit)


def _kernel_planes(corners: NDArray[np.float32], faces: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the planes of the triangles ``(m, 4)``, in StarDist's precision; inside is below 0."""
    a, b, c = (corners[faces[:, k]] for k in range(3))
    p, q = b - a, c - a
    normal = np.stack(
        [
            -(p[:, 1] * q[:, 2] - p[:, 2] * q[:, 1]),
            -(p[:, 2] * q[:, 0] - p[:, 0] * q[:, 2]),
            -(p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]),
        ],
        axis=1,
    )
    away = -(a[:, 0] * normal[:, 0] + a[:, 1] * normal[:, 1] + a[:, 2] * normal[:, 2])
    return np.column_stack([normal, away]).astype(np.float64)


def _common(planes: NDArray[Any], middle: NDArray[np.float32], unknown: float) -> float:
    """Return the volume of the intersection of half-spaces, ``unknown`` where the middle does not lie in all."""
    at = middle.astype(np.float64)
    if (planes[:, :3] @ at + planes[:, 3] >= 0).any():
        return unknown
    try:
        return float(ConvexHull(HalfspaceIntersection(planes, at).intersections).volume)
    except QhullError:
        return unknown
