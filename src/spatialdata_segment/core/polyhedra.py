"""Star-convex polyhedra: corners, volumes, and which voxels lie inside.

A polyhedron is a point and its distances to the surface along rays, joined by triangles, the same for all. Rules and
precision are those of StarDist's C++ (Weigert et al., "Star-convex polyhedra for 3D object detection and segmentation
in microscopy", 2020): a voxel is inside if it lies in the tetrahedron of the point and a triangle. Here only the
triangles are tried that may lie in the voxel's direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CELLS = 16
"""Cells along a side of the cube on which directions are looked up."""
_PAD = 1e-3
"""Radians by which a triangle is taken for larger."""
_FLAT = 1e-6
"""Determinant of the directions of a triangle's corners below which they lie in a plane, as at a pole."""


@dataclass(frozen=True)
class Polyhedra:
    """Polyhedra as suppression sees them; positions are indices of the whole image, axes ``(z, y, x)``.

    Attributes
    ----------
    corners
        ``(n, n_rays, 3)`` float32.
    bbox
        ``(n, 6)`` int64: first and last voxel along z, y and x.
    volume
        ``(n,)`` float32, voxels.
    inner
        ``(n,)`` float64: least distance of the point from the planes of the triangles, below 0 where one is not passed.
    points
        ``(n, 3)`` float32.
    faces
        ``(m, 3)`` int64: the rays at the corners of each triangle.
    first, listed
        The triangles that may lie in a direction: those of cell ``k`` are ``listed[first[k] : first[k + 1]]``.
    """

    corners: NDArray[np.float32]
    bbox: NDArray[np.int64]
    volume: NDArray[np.float32]
    inner: NDArray[np.float64]
    points: NDArray[np.float32]
    faces: NDArray[np.int64]
    first: NDArray[np.int64]
    listed: NDArray[np.int64]

    @property
    def fields(self) -> tuple[NDArray[Any], ...]:
        """What kernels take."""
        return self.corners, self.bbox, self.volume, self.inner, self.points, self.faces, self.first, self.listed

    @classmethod
    def of(
        cls,
        points: NDArray[np.integer],
        dist: NDArray[np.float32],
        vertices: NDArray[np.float32],
        faces: NDArray[np.integer],
        directions: tuple[NDArray[np.int64], NDArray[np.int64]],
    ) -> Polyhedra:
        """Build the polyhedra.

        Parameters
        ----------
        points
            ``(n, 3)`` voxels.
        dist
            ``(n, n_rays)``.
        vertices, faces
            Of the rays.
        directions
            What `look_up` returned for these.
        """
        at, far = np.ascontiguousarray(points, np.float32), np.ascontiguousarray(dist, np.float32)
        triangles = np.ascontiguousarray(faces, np.int64)
        corners, bbox, volume, inner = _polyhedra(at, far, np.ascontiguousarray(vertices, np.float32), triangles)
        return cls(corners, bbox, volume, inner, at, triangles, *directions)


def extents(
    points: NDArray[np.integer], dist: NDArray[np.float32], vertices: NDArray[np.float32], shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """Return ``(n, 6)`` the voxels that polyhedra may fill, starts, then stops, as far as the image goes."""
    ends = np.array(shape)
    if not len(points):
        return np.zeros((0, 6), np.int64)
    at = np.ascontiguousarray(points, np.float32)
    bbox = _boxes(at, np.ascontiguousarray(dist, np.float32), np.ascontiguousarray(vertices, np.float32))
    return np.concatenate([np.clip(bbox[:, ::2], 0, ends - 1), np.clip(bbox[:, 1::2] + 1, 1, ends)], axis=1)


def look_up(vertices: NDArray[np.float32], faces: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which triangles may lie in the directions of each cell of a cube: see `Polyhedra`."""
    side = (np.arange(_CELLS) + 0.5) / _CELLS * 2 - 1
    v, u = (g.ravel() for g in np.meshgrid(side, side, indexing="ij"))
    cells = np.empty((6, _CELLS**2, 3))
    for axis in range(3):
        a, b = (k for k in range(3) if k != axis)
        for sign in range(2):
            part = cells[2 * axis + sign]
            part[:, axis], part[:, a], part[:, b] = 2 * sign - 1, v, u
    centre = cells.reshape(-1, 3)
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    radius = np.sin(np.sqrt(2.0) / _CELLS + _PAD)  # of a cell seen from the middle, at most
    near = np.ones((len(centre), len(faces)), np.bool_)
    corner = np.asarray(vertices, np.float64)[np.asarray(faces)]
    inside = corner.sum(axis=1)
    for k in range(3):
        normal = np.cross(corner[:, k], corner[:, (k + 1) % 3])
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
        normal *= np.where((normal * inside).sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
        near &= centre @ normal.T >= -radius
    near |= np.abs(np.linalg.det(corner)) < _FLAT  # what has no inside may hold voxels in any direction
    first = np.concatenate([[0], np.cumsum(near.sum(axis=1))]).astype(np.int64)
    return first, np.nonzero(near)[1].astype(np.int64)


@kernel
def _boxes(points: Any, dist: Any, vertices: Any) -> Any:
    n, m = dist.shape
    bbox = np.empty((n, 6), np.int64)
    for i in range(n):
        for k in range(3):
            bbox[i, 2 * k], bbox[i, 2 * k + 1] = np.iinfo(np.int32).max, -1
        for r in range(m):
            for k in range(3):
                at = int(np.rint(points[i, k] + dist[i, r] * vertices[r, k]))
                bbox[i, 2 * k] = min(bbox[i, 2 * k], at)
                bbox[i, 2 * k + 1] = max(bbox[i, 2 * k + 1], at)
    return bbox


@kernel
def _polyhedra(points: Any, dist: Any, vertices: Any, faces: Any) -> Any:
    n, m = dist.shape
    corners = np.empty((n, m, 3), np.float32)
    volume, inner = np.empty(n, np.float32), np.empty(n)
    arm = np.empty((m, 3), np.float32)
    for i in range(n):
        for r in range(m):
            for k in range(3):
                arm[r, k] = dist[i, r] * vertices[r, k]
                corners[i, r, k] = points[i, k] + arm[r, k]
        total, least = np.float32(0), np.inf
        for f in range(len(faces)):
            a, b, c = arm[faces[f, 0]], arm[faces[f, 1]], arm[faces[f, 2]]
            total += _det(b, c, np.zeros(3, np.float32), a) / np.float32(6)
            least = min(least, _distance(a, b, c))
        volume[i], inner[i] = total, least
    return corners, _boxes(points, dist, vertices), volume, inner


@kernel
def _distance(a: Any, b: Any, c: Any) -> float:
    """Return the distance of a plane from 0, above 0 where that lies on its inner side."""
    py, pz, px = float(b[1] - a[1]), float(b[0] - a[0]), float(b[2] - a[2])
    qy, qz, qx = float(c[1] - a[1]), float(c[0] - a[0]), float(c[2] - a[2])
    nz, ny, nx = px * qy - py * qx, pz * qx - px * qz, py * qz - pz * qy
    length = np.sqrt(nz * nz + ny * ny + nx * nx)
    return (a[0] * nz + a[1] * ny + a[2] * nx) / length if length > 0 else 0.0


@kernel
def _det(b: Any, c: Any, p: Any, a: Any) -> Any:
    """Return the determinant of ``b - a``, ``c - a``, ``p - a`` in single precision."""
    m00, m01, m02 = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    m10, m11, m12 = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    m20, m21, m22 = p[0] - a[0], p[1] - a[1], p[2] - a[2]
    return m00 * (m11 * m22 - m21 * m12) - m01 * (m10 * m22 - m12 * m20) + m02 * (m10 * m21 - m11 * m20)


@kernel
def cell_of(p: Any, centre: Any) -> int:
    """Return the cell of the direction from a centre to a voxel; -1 for the centre."""
    best, axis = np.float32(0), -1
    for k in range(3):
        if abs(p[k] - centre[k]) > best:
            best, axis = abs(p[k] - centre[k]), k
    if axis < 0:
        return -1
    a, b = (1 if axis == 0 else 0), (1 if axis == 2 else 2)
    v = int((float(p[a] - centre[a]) / best + 1) * 0.5 * _CELLS)
    u = int((float(p[b] - centre[b]) / best + 1) * 0.5 * _CELLS)
    which = 2 * axis + (1 if p[axis] > centre[axis] else 0)
    return (which * _CELLS + min(v, _CELLS - 1)) * _CELLS + min(u, _CELLS - 1)


@kernel
def holds(p: Any, centre: Any, corners: Any, faces: Any, first: Any, listed: Any) -> bool:
    """Tell whether a voxel lies in one of the tetrahedra of a polyhedron."""
    cell = cell_of(p, centre)
    if cell < 0:
        return True
    for e in range(first[cell], first[cell + 1]):
        f = listed[e]
        a, b, c = corners[faces[f, 0]], corners[faces[f, 1]], corners[faces[f, 2]]
        if (
            _det(b, c, p, a) >= 0
            and _det(b, a, p, centre) >= 0
            and _det(c, b, p, centre) >= 0
            and _det(a, c, p, centre) >= 0
        ):
            return True
    return False
