"""Clipper, the library with which StarDist intersects polygons: asked where our own area is close to a threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spatialdata_segment.errors import require

if TYPE_CHECKING:
    from numpy.typing import NDArray


def clipped_area(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Return the area, px, of the intersection of two polygons ``(n, 2)`` of whole numbers ``(y, x)``.

    Raises
    ------
    MissingError
        If pyclipper is not installed.
    """
    clipper = require("pyclipper", "stardist")
    pairs = clipper.Pyclipper()
    try:
        pairs.AddPath(a[:, ::-1].tolist(), clipper.PT_CLIP, True)
        pairs.AddPath(b[:, ::-1].tolist(), clipper.PT_SUBJECT, True)
    except clipper.ClipperException:  # of no area
        return 0.0
    found = pairs.Execute(clipper.CT_INTERSECTION, clipper.PFT_NONZERO, clipper.PFT_NONZERO)
    return float(sum(_area(np.array(path, np.int64)) for path in found))


def _area(path: NDArray[np.int64]) -> float:
    after = np.roll(path, -1, axis=0)
    return 0.5 * abs(int((path[:, 0] * after[:, 1] - path[:, 1] * after[:, 0]).sum()))
