"""Star-convex polygons: corners, areas, and what StarDist's suppression makes of them.

A polygon is a point and its distances to the outline in equal angles, the first along x, then towards y. StarDist
(Schmidt et al., "Cell detection with star-convex polygons", 2018) cuts corners to whole numbers for its suppression,
and paints polygons with corners as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Stars:
    """Polygons as suppression sees them; positions are indices of the whole image, axes ``(y, x)``.

    Attributes
    ----------
    corners
        ``(n, n_rays, 2)`` int64: corners, cut to whole numbers towards zero.
    bbox
        ``(n, 4)`` float32: least and greatest y, then x, of the corners before they are cut.
    area
        ``(n,)`` float64, px.
    length
        ``(n,)`` float64, px, of the outline.
    inner
        ``(n,)`` float64, px: radius around the point in which the polygon is full; below 0 where its corners do not go
        around the point in one turn.
    points
        ``(n, 2)`` float32.
    """

    corners: NDArray[np.int64]
    bbox: NDArray[np.float32]
    area: NDArray[np.float64]
    length: NDArray[np.float64]
    inner: NDArray[np.float64]
    points: NDArray[np.float32]

    @property
    def fields(self) -> tuple[NDArray[Any], ...]:
        """What kernels take."""
        return self.corners, self.bbox, self.area, self.length, self.inner, self.points

    @classmethod
    def of(cls, points: NDArray[np.integer], dist: NDArray[np.float32]) -> Stars:
        """Build the polygons.

        Parameters
        ----------
        points
            ``(n, 2)`` pixels.
        dist
            ``(n, n_rays)`` px.
        """
        at = np.ascontiguousarray(points, np.float32)
        sides = directions(dist.shape[1])
        corners, bbox, area, length, inner = _stars(at, np.ascontiguousarray(dist, np.float32), sides)
        return cls(corners, bbox, area, length, inner, at)


def directions(n_rays: int) -> NDArray[np.float32]:
    """Return ``(n_rays, 2)`` sine and cosine of the rays' angles, in StarDist's precision."""
    step = np.float32(2 * math.pi / n_rays)
    angles = [float(step * np.float32(k)) for k in range(n_rays)]
    return np.array([[math.sin(a), math.cos(a)] for a in angles], np.float32)


def extents(points: NDArray[np.integer], dist: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the pixels that polygons may touch or overlap in, as far as the image goes.

    Returns
    -------
    ``(n, 4)``: starts, then stops.
    """
    at = np.ascontiguousarray(points, np.float32)
    bbox = _stars(at, np.ascontiguousarray(dist, np.float32), directions(dist.shape[1]))[1]
    low, high = np.floor(bbox[:, ::2]).astype(np.int64) - 1, np.ceil(bbox[:, 1::2]).astype(np.int64) + 2
    ends = np.array(shape)
    return np.concatenate([np.clip(low, 0, ends - 1), np.clip(high, 1, ends)], axis=1)


def outline_corners(points: NDArray[np.integer], dist: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``(n, n_rays, 2)`` float32 corners ``(y, x)`` as StarDist paints them (`dist_to_coord`)."""
    phis = np.linspace(0, 2 * np.pi, dist.shape[1], endpoint=False)
    corners: NDArray[np.float32] = (dist[:, :, None] * np.stack([np.sin(phis), np.cos(phis)], axis=1)).astype(
        np.float32
    )
    corners += np.asarray(points, np.int64)[:, None]
    return corners


@kernel
def _stars(points: Any, dist: Any, sides: Any) -> Any:
    n, m = dist.shape
    corners = np.empty((n, m, 2), np.int64)
    bbox = np.empty((n, 4), np.float32)
    area, length, inner = np.empty(n), np.empty(n), np.empty(n)
    for i in range(n):
        for k in range(m):
            y = points[i, 0] + dist[i, k] * sides[k, 0]
            x = points[i, 1] + dist[i, k] * sides[k, 1]
            corners[i, k, 0], corners[i, k, 1] = int(y), int(x)
            if k == 0:
                bbox[i, 0], bbox[i, 1], bbox[i, 2], bbox[i, 3] = y, y, x, x
            bbox[i, 0], bbox[i, 1] = min(bbox[i, 0], y), max(bbox[i, 1], y)
            bbox[i, 2], bbox[i, 3] = min(bbox[i, 2], x), max(bbox[i, 3], x)
        twice, around, least = 0, 0.0, np.inf
        oy, ox = float(points[i, 0]), float(points[i, 1])
        for k in range(m):
            y0, x0 = corners[i, k, 0], corners[i, k, 1]
            y1, x1 = corners[i, (k + 1) % m, 0], corners[i, (k + 1) % m, 1]
            twice += x0 * y1 - y0 * x1
            side = math.sqrt(float((y1 - y0) ** 2 + (x1 - x0) ** 2))
            around += side
            if side > 0:
                least = min(least, ((x0 - ox) * (y1 - oy) - (y0 - oy) * (x1 - ox)) / side)
        area[i], length[i] = 0.5 * abs(twice), around
        inner[i] = least if least < np.inf else -1.0
    return corners, bbox, area, length, inner
