"""Contrast limited adaptive histogram equalization on tiles that are fixed to the image's first pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BINS = 256


def equalize(plane: NDArray[Any], tile: int, clip_limit: float) -> NDArray[np.float32]:
    """Equalize the histograms of tiles, and blend between the tiles' centres.

    Parameters
    ----------
    plane
        ``(y, x)``, values 0 to 1; what lies beyond is taken for 0 or 1.
    tile
        Side of a tile in px; the first begins at the first pixel.
    clip_limit
        Largest share of a tile's pixels that one of 256 grey values may count for, 0 to 1. The rest is
        spread evenly over all of them.

    Returns
    -------
    ``(y, x)`` float32, 0 to 1. A pixel depends on its own tile and the eight around it, and on the values' own
    scale: never on the least and greatest value there are, as in `skimage.exposure.equalize_adapthist`.

    Notes
    -----
    K. Zuiderveld, "Contrast limited adaptive histogram equalization", Graphics Gems IV (1994).
    """
    grey = (np.clip(plane, 0, 1) * np.float32(_BINS - 1) + np.float32(0.5)).astype(np.uint8)
    counts = np.zeros((-(-plane.shape[0] // tile), -(-plane.shape[1] // tile), _BINS), np.float64)
    _count(grey, tile, counts)
    pixels = counts.sum(axis=-1, keepdims=True)
    clipped = np.minimum(counts, clip_limit * pixels)
    clipped += (pixels - clipped.sum(axis=-1, keepdims=True)) / _BINS
    out = np.empty(plane.shape, np.float32)
    _blend(grey, tile, np.cumsum(clipped, axis=-1) / pixels, out)
    return out


@kernel
def _count(grey: Any, tile: Any, counts: Any) -> Any:
    for y in range(grey.shape[0]):
        for x in range(grey.shape[1]):
            counts[y // tile, x // tile, grey[y, x]] += 1


@kernel
def _blend(grey: Any, tile: Any, maps: Any, out: Any) -> Any:
    """Interpolate between the maps of the four tiles whose centres are nearest."""
    rows, columns = maps.shape[0] - 1, maps.shape[1] - 1
    for y in range(grey.shape[0]):
        at = (y + 0.5) / tile - 0.5
        top = int(np.floor(at))
        down = at - top
        above, under = max(top, 0), min(top + 1, rows)
        for x in range(grey.shape[1]):
            at = (x + 0.5) / tile - 0.5
            left = int(np.floor(at))
            right = at - left
            before, after, value = max(left, 0), min(left + 1, columns), grey[y, x]
            high = (1 - right) * maps[above, before, value] + right * maps[above, after, value]
            low = (1 - right) * maps[under, before, value] + right * maps[under, after, value]
            out[y, x] = (1 - down) * high + down * low
