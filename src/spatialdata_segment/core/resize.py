"""Bilinear resizing of a part of an image, with the positions of the whole: the same in every window.

Pixel centres are half a pixel off the grid and positions beyond the outer centres take the outer pixels, as
OpenCV's ``resize`` has it. Where positions are ``rounded`` to float32 it is as OpenCV has it for two channels, which is
what a CPnet sees, else as for one or three.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Taps(NamedTuple):
    """What new pixels along an axis are made of: two old ones, and the weight of the second."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    weight: NDArray[np.float32]


def taps(old: int, new: int, start: int, stop: int, *, rounded: bool = False) -> Taps:
    """Return what the pixels ``start`` to ``stop`` of an axis resized from ``old`` to ``new`` pixels are made of."""
    at = (np.arange(start, stop) + 0.5) * (old / new) - 0.5
    at = np.clip(at.astype(np.float32) if rounded else at, 0, old - 1)
    first = np.floor(at).astype(np.int64)
    return Taps(first, np.minimum(first + 1, old - 1), (at - first).astype(np.float32))


def source_range(old: int, new: int, start: int, stop: int, *, rounded: bool = False) -> tuple[int, int]:
    """Return which old pixels the new ones from ``start`` to ``stop`` are made of."""
    if stop <= start:
        return 0, 0
    ends = [taps(old, new, at, at + 1, rounded=rounded) for at in (start, stop - 1)]
    return int(ends[0].first[0]), int(ends[1].second[0]) + 1


def nearest(old: int, new: int, start: int, stop: int) -> NDArray[np.int64]:
    """Return the old pixel that each of the new ones from ``start`` to ``stop`` takes, without interpolation."""
    step = 1 / (new / old)  # rounded twice, as OpenCV has it
    return np.minimum((np.arange(start, stop) * step).astype(np.int64), old - 1)


def resize(image: NDArray[np.float32], origin: tuple[int, ...], rows: Taps, columns: Taps) -> NDArray[np.float32]:
    """Interpolate.

    Parameters
    ----------
    image
        ``(c, y, x)``: a part of the old image.
    origin
        ``(y, x)`` of its first pixel in the whole.
    rows, columns
        What to make, in indices of the whole.
    """
    out = np.empty((len(image), len(rows.first), len(columns.first)), np.float32)
    above, below = rows.first - origin[0], rows.second - origin[0]
    left, right = columns.first - origin[1], columns.second - origin[1]
    _interpolate(image, above, below, rows.weight, left, right, columns.weight, out)
    return out


def resize_volume(
    volume: NDArray[np.float32], origin: tuple[int, ...], planes: Taps, rows: Taps, columns: Taps
) -> NDArray[np.float32]:
    """Interpolate along y and x, then along z.

    Parameters
    ----------
    volume
        ``(c, z, y, x)``: a part of the old volume.
    origin
        ``(z, y, x)`` of its first voxel in the whole.
    planes, rows, columns
        What to make, in indices of the whole.
    """
    n, depth = volume.shape[:2]
    flat = resize(volume.reshape(n * depth, *volume.shape[2:]), origin[1:], rows, columns)
    flat = flat.reshape(n, depth, *flat.shape[1:])
    out = np.empty((n, len(planes.first), *flat.shape[2:]), np.float32)
    for at, (first, second, weight) in enumerate(zip(planes.first, planes.second, planes.weight, strict=True)):
        np.multiply(flat[:, first - origin[0]], np.float32(1) - weight, out=out[:, at])
        out[:, at] += flat[:, second - origin[0]] * weight
    return out


@kernel
def _interpolate(image: Any, above: Any, below: Any, down: Any, left: Any, right: Any, across: Any, out: Any) -> None:
    one = np.float32(1)
    for c in range(out.shape[0]):
        for y in range(out.shape[1]):
            first, second, v = image[c, above[y]], image[c, below[y]], down[y]
            for x in range(out.shape[2]):
                a, b, u = left[x], right[x], across[x]
                top = first[a] * (one - u) + first[b] * u
                bottom = second[a] * (one - u) + second[b] * u
                out[c, y, x] = top * (one - v) + bottom * v
