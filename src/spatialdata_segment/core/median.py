"""The median over a disk: a histogram that slides along the rows, exact for integers of up to 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import ndimage

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHIFT = 6
"""A coarse bin holds 64 fine ones, and is skipped at once."""
_GROUP = 1 << _SHIFT
_WITHIN = _GROUP - 1


def disk_median(image: NDArray[Any], radius: int) -> NDArray[Any]:
    """Return the median of the pixels within ``radius`` of each pixel; beyond the edges they are repeated.

    Parameters
    ----------
    image
        ``(..., y, x)``, numbers or bool; each plane for itself.
    radius
        px, at least 1. The disk is that of ``skimage.morphology.disk``: centres at most ``radius`` away.

    Returns
    -------
    The same shape and dtype. A disk has an odd number of pixels, so that a median is one of them.

    Notes
    -----
    Integers of up to 16 bits: T. S. Huang et al., "A fast two-dimensional median filtering algorithm" (1979),
    with a second, coarser histogram. Others go through `scipy.ndimage.median_filter`.
    """
    out = np.empty(image.shape, image.dtype)
    planes, medians = (a.reshape(-1, *image.shape[-2:]) for a in (image, out))
    reach = np.arange(-radius, radius + 1)
    for plane, median in zip(planes, medians, strict=True):
        if image.dtype.itemsize > 2 or image.dtype.kind not in "bui":
            disk = reach[:, None] ** 2 + reach**2 <= radius**2
            ndimage.median_filter(plane, footprint=disk, output=median, mode="nearest")
        else:
            median[...] = _integers(plane, radius, np.sqrt(radius**2 - reach**2).astype(np.int64))
    return out


def square_median(plane: NDArray[Any], radius: int) -> NDArray[Any]:
    """Return the median over squares of ``2 * radius + 1`` px of integers of up to 16 bits; the edges mirror."""
    return _integers(plane, radius, np.full(2 * radius + 1, radius), "symmetric")


def _integers(
    plane: NDArray[Any], radius: int, widths: NDArray[np.int64], beyond: Literal["edge", "symmetric"] = "edge"
) -> NDArray[Any]:
    lowest = np.iinfo(plane.dtype).min if plane.dtype.kind == "i" else 0
    padded = np.pad(plane.astype(np.int32) - lowest, radius, mode=beyond).astype(np.uint16)
    bins = 1 << (8 * plane.dtype.itemsize)
    out = np.empty(plane.shape, np.int32)
    _slide(padded, radius, widths, np.zeros(bins, np.int32), np.zeros(bins >> _SHIFT, np.int32), out)
    return (out + lowest).astype(plane.dtype)


@kernel
def _slide(padded: Any, radius: Any, widths: Any, fine: Any, coarse: Any, out: Any) -> Any:
    """Keep the histogram of the disk while it moves; ``below`` of its pixels are less than ``median``."""
    rows, columns = out.shape
    half = (2 * widths.sum() + widths.size) // 2
    for y in range(rows):
        median = below = np.int64(0)
        for dy in range(widths.size):
            for x in range(radius - widths[dy], radius + widths[dy] + 1):
                value = padded[y + dy, x]
                fine[value] += 1
                coarse[value >> _SHIFT] += 1
        for x in range(columns):
            if x > 0:
                for dy in range(widths.size):
                    old = padded[y + dy, x - 1 + radius - widths[dy]]
                    new = padded[y + dy, x + radius + widths[dy]]
                    if old != new:
                        fine[old] -= 1
                        coarse[old >> _SHIFT] -= 1
                        fine[new] += 1
                        coarse[new >> _SHIFT] += 1
                        below += np.int64(new < median) - np.int64(old < median)
            while below > half:
                if median & _WITHIN == 0 and below - coarse[(median >> _SHIFT) - 1] > half:
                    median -= _GROUP
                    below -= coarse[median >> _SHIFT]
                else:
                    median -= 1
                    below -= fine[median]
            while below + fine[median] <= half:
                if median & _WITHIN == 0 and below + coarse[median >> _SHIFT] <= half:
                    below += coarse[median >> _SHIFT]
                    median += _GROUP
                else:
                    below += fine[median]
                    median += 1
            out[y, x] = median
        for dy in range(widths.size):
            for x in range(columns - 1 + radius - widths[dy], columns + radius + widths[dy]):
                value = padded[y + dy, x]
                fine[value] = 0
                coarse[value >> _SHIFT] = 0
