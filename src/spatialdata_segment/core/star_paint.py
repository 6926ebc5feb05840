"""Painting of star-convex polygons: the pixels that `skimage.draw.polygon` gives, which StarDist paints with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SAME = 1e-12
"""px; a pixel this close to a corner is on it."""


def paint_stars(
    corners: NDArray[np.float32], order: NDArray[np.int64], start: tuple[int, ...], shape: tuple[int, ...]
) -> NDArray[np.int32]:
    """Paint polygons into a window, one over the other.

    Parameters
    ----------
    corners
        ``(n, n_rays, 2)`` float32 ``(y, x)``, in indices of the whole image.
    order
        In which they are painted: the last one is on top.
    start, shape
        First pixel and size of the window.

    Returns
    -------
    Labels ``(y, x)``: position of the polygon plus 1, 0 for none.
    """
    out = np.zeros(shape, np.int32)
    _paint(np.ascontiguousarray(corners, np.float64), order, start[0], start[1], out)
    return out


@kernel
def _paint(corners: Any, order: Any, y_start: int, x_start: int, out: Any) -> None:
    m = corners.shape[1]
    edges = np.empty(m, np.int64)
    for i in order:
        star = corners[i]
        low, high = max(float(y_start), math.floor(star[:, 0].min())), math.ceil(star[:, 0].max())
        left, right = max(float(x_start), math.floor(star[:, 1].min())), math.ceil(star[:, 1].max())
        for y in range(int(low), min(int(high), y_start + out.shape[0] - 1) + 1):
            n = 0
            for k in range(m):
                y0, y1 = star[k, 0] - y, star[k - 1, 0] - y
                if ((y0 > 0) != (y1 > 0)) or ((y0 < 0) != (y1 < 0)) or -_SAME < y0 < _SAME:
                    edges[n] = k
                    n += 1
            if n == 0:
                continue
            for x in range(int(left), min(int(right), x_start + out.shape[1] - 1) + 1):
                if _holds(star, edges, n, y, x):
                    out[y - y_start, x - x_start] = i + 1


@kernel
def _holds(star: Any, edges: Any, n: int, y: int, x: int) -> bool:
    """Tell whether a pixel's centre lies in a polygon, or on its outline (O'Rourke, "Computational Geometry in C")."""
    right, left = False, False
    for e in range(n):
        k = edges[e]
        y0, x0 = star[k, 0] - y, star[k, 1] - x
        if -_SAME < x0 < _SAME and -_SAME < y0 < _SAME:
            return True
        y1, x1 = star[k - 1, 0] - y, star[k - 1, 1] - x
        if (y0 > 0) != (y1 > 0) and (x0 * y1 - x1 * y0) / (y1 - y0) > 0:
            right = not right
        if (y0 < 0) != (y1 < 0) and (x0 * y1 - x1 * y0) / (y1 - y0) < 0:
            left = not left
    return right or left != right
