"""Painting of star-convex polyhedra: the voxels that StarDist's ``polyhedron_to_label`` gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.polyhedra import cell_of, holds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spatialdata_segment.core.polyhedra import Polyhedra


def paint_polyhedra(
    polyhedra: Polyhedra, order: NDArray[np.int64], start: tuple[int, ...], shape: tuple[int, ...]
) -> NDArray[np.int32]:
    """Paint polyhedra into a window: a voxel is of the first that holds it.

    Parameters
    ----------
    polyhedra
        Positions are indices of the whole image.
    order
        In which they are painted.
    start, shape
        First voxel and size of the window.

    Returns
    -------
    Labels ``(z, y, x)``: position of the polyhedron plus 1, 0 for none.
    """
    out = np.zeros(shape, np.int32)
    _paint(polyhedra.fields, order, np.array(start, np.int64), out)
    return out


@kernel
def _paint(polyhedra: Any, order: Any, start: Any, out: Any) -> None:
    corners, bbox, _, _, points, faces, first, listed = polyhedra
    planes, p = np.empty((len(faces), 4)), np.empty(3, np.float32)
    for i in order:
        _planes(corners[i], faces, planes)
        z0, z1 = max(bbox[i, 0], start[0]), min(bbox[i, 1], start[0] + out.shape[0] - 1)
        y0, y1 = max(bbox[i, 2], start[1]), min(bbox[i, 3], start[1] + out.shape[1] - 1)
        x0, x1 = max(bbox[i, 4], start[2]), min(bbox[i, 5], start[2] + out.shape[2] - 1)
        for z in range(z0, z1 + 1):
            for y in range(y0, y1 + 1):
                for x in range(x0, x1 + 1):
                    if out[z - start[0], y - start[1], x - start[2]] != 0:
                        continue
                    p[0], p[1], p[2] = z, y, x
                    if holds(p, points[i], corners[i], faces, first, listed) or _in_all(
                        p, points[i], planes, first, listed
                    ):
                        out[z - start[0], y - start[1], x - start[2]] = i + 1


@kernel
def _planes(corners: Any, faces: Any, planes: Any) -> None:
    """Write the planes of the triangles; inside is not above 0."""
    for f in range(len(faces)):
        a, b, c = corners[faces[f, 0]], corners[faces[f, 1]], corners[faces[f, 2]]
        pz, py, px = b[0] - a[0], b[1] - a[1], b[2] - a[2]
        qz, qy, qx = c[0] - a[0], c[1] - a[1], c[2] - a[2]
        nz, ny, nx = -(py * qx - px * qy), -(px * qz - pz * qx), -(pz * qy - py * qz)
        planes[f, 0], planes[f, 1], planes[f, 2] = nz, ny, nx
        planes[f, 3] = -(a[0] * nz + a[1] * ny + a[2] * nx)


@kernel
def _in_all(p: Any, centre: Any, planes: Any, first: Any, listed: Any) -> bool:
    """Tell whether a voxel is on the inner side of every triangle: those in its direction are asked first."""
    cell = cell_of(p, centre)
    if cell >= 0:
        for e in range(first[cell], first[cell + 1]):
            if _beyond(planes[listed[e]], p):
                return False
    for f in range(len(planes)):  # noqa: SIM110 (numba knows no generators)
        if _beyond(planes[f], p):
            return False
    return True


@kernel
def _beyond(plane: Any, p: Any) -> Any:
    return plane[0] * p[0] + plane[1] * p[1] + plane[2] * p[2] + plane[3] > 0
