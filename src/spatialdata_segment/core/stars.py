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
from spatialdata_segment.core.star_bands import bands_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Stars:
    """Polygons as suppression sees them; positions are indices of the whole image, axes ``(y, x)``.

    Attributes
    ----------
    corners
        ``(n, n_rays, 2)`` int32: corners, cut to whole numbers towards zero; those equal to the one before are left
        out, and the last is repeated instead.
    bbox
        ``(n, 4)`` float32: least and greatest y, then x, of the corners before they are cut.
    area
        ``(n,)`` float64, px.
    length
        ``(n,)`` float64, px, of the outline.
    points
        ``(n, 2)`` float32.
    turns
        ``(n,)`` int32: number of corners that go around the point in one turn, each farther than the one before; its
        negative where some do not go farther; 0 where some go back.
    bands
        Rectangles in and around each: see `bands_of`.
    """

    corners: NDArray[np.int32]
    bbox: NDArray[np.float32]
    area: NDArray[np.float64]
    length: NDArray[np.float64]
    points: NDArray[np.float32]
    turns: NDArray[np.int32]
    bands: tuple[Any, ...]

    @property
    def fields(self) -> tuple[Any, ...]:
        """What kernels take."""
        return self.corners, self.bbox, self.area, self.length, self.points, self.turns, self.bands

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
        corners, counts, bbox, area, length, turns = _stars(at, np.ascontiguousarray(dist, np.float32), sides)
        return cls(corners, bbox, area, length, at, turns, bands_of(corners, counts))


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
    bbox = _bboxes(at, np.ascontiguousarray(dist, np.float32), directions(dist.shape[1]))
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
def _bboxes(points: Any, dist: Any, sides: Any) -> Any:
    n, m = dist.shape
    bbox = np.empty((n, 4), np.float32)
    for i in range(n):
        y, x = points[i, 0] + dist[i, 0] * sides[0, 0], points[i, 1] + dist[i, 0] * sides[0, 1]
        low_y, high_y, low_x, high_x = y, y, x, x
        for k in range(1, m):
            y, x = points[i, 0] + dist[i, k] * sides[k, 0], points[i, 1] + dist[i, k] * sides[k, 1]
            low_y, high_y, low_x, high_x = min(low_y, y), max(high_y, y), min(low_x, x), max(high_x, x)
        bbox[i, 0], bbox[i, 1], bbox[i, 2], bbox[i, 3] = low_y, high_y, low_x, high_x
    return bbox


@kernel
def _stars(points: Any, dist: Any, sides: Any) -> Any:
    n, m = dist.shape
    corners, counts = np.empty((n, m, 2), np.int32), np.empty(n, np.int32)
    area, length, turns = np.empty(n), np.empty(n), np.empty(n, np.int32)
    for i in range(n):
        star, oy, ox = corners[i], int(points[i, 0]), int(points[i, 1])
        count = 0
        for k in range(m):
            y, x = int(points[i, 0] + dist[i, k] * sides[k, 0]), int(points[i, 1] + dist[i, k] * sides[k, 1])
            if count == 0 or y != star[count - 1, 0] or x != star[count - 1, 1]:
                star[count, 0], star[count, 1] = y, x
                count += 1
        while count > 1 and star[count - 1, 0] == star[0, 0] and star[count - 1, 1] == star[0, 1]:
            count -= 1
        for k in range(count, m):
            star[k, 0], star[k, 1] = star[count - 1, 0], star[count - 1, 1]
        twice, around, least = 0, 0.0, 1
        y0, x0 = star[count - 1, 0] - oy, star[count - 1, 1] - ox
        for k in range(count):
            y1, x1 = star[k, 0] - oy, star[k, 1] - ox
            cross = x0 * y1 - y0 * x1
            twice, least = twice + cross, min(least, cross)
            around += math.sqrt(float((y1 - y0) ** 2 + (x1 - x0) ** 2))
            y0, x0 = y1, x1
        counts[i], area[i], length[i] = count, 0.5 * abs(twice), around
        turns[i] = 0 if least < 0 or count < 3 else count if least > 0 else -count
    return corners, counts, _bboxes(points, dist, sides), area, length, turns
