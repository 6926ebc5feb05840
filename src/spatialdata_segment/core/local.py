"""Thresholds that follow the image: local contrast, local Otsu, a local median. On a grid fixed to the image.

A window computes them from the whole cells that it shows, and they are those of the whole image wherever the
window reaches far enough beyond; each function says how far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.median import square_median

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from spatialdata_segment.core.plan import Window

_CELLS_PER_RADIUS = 4
_BACKGROUND = 3.0
"""Radius, in radii of an object, within which the background shows somewhere."""
_PEAK = 0.7
"""Radius, in radii of an object, within which the brightest pixel is taken for the object's own."""


@dataclass(frozen=True)
class Cells:
    """The cells of a grid fixed to the image that a window shows whole.

    Attributes
    ----------
    size
        Pixels of a cell along every axis; the last one of the image may be smaller.
    first, stop
        Indices of the first cell and of the one after the last, per axis.
    window
        The window.
    """

    size: int
    first: tuple[int, ...]
    stop: tuple[int, ...]
    window: Window

    @classmethod
    def of(cls, window: Window, size: int) -> Cells:
        """Find the whole cells."""
        first = tuple(-(-a // size) for a in window.box.start)
        ends = zip(window.box.stop, window.open_high, strict=True)
        return cls(size, first, tuple(b // size if is_open else -(-b // size) for b, is_open in ends), window)

    def means(self, image: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the mean of each cell, added up in raster order."""
        out = np.zeros([max(b - a, 0) for a, b in zip(self.first, self.stop, strict=True)], image.dtype)
        offset = [a * self.size - o for a, o in zip(self.first, self.window.box.start, strict=True)]
        _means(_volume(image), _three(offset, 0), _three([self.size] * image.ndim, 1), _volume(out))
        return out

    def above(self, image: NDArray[np.floating], threshold: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Tell which pixels are above a threshold that is given at the cells' centres, linear between them."""
        out = np.zeros(image.shape, np.bool_)
        if threshold.size:
            one = np.zeros(1, np.int64), np.zeros(1, np.float32)
            z, y, x = [one] * (3 - image.ndim) + [self._between(axis) for axis in range(image.ndim)]
            _above(_volume(image), _volume(threshold), z, y, x, _volume(out))
        return out

    def _between(self, axis: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Position of each pixel of an axis: the cell before it, and how far it is on the way to the next."""
        at = np.arange(self.window.box.start[axis], self.window.box.stop[axis])
        place = np.clip((2 * at + 1 - self.size) / (2 * self.size) - self.first[axis], 0, None)
        low = np.minimum(place.astype(np.int64), max(self.stop[axis] - self.first[axis] - 2, 0))
        return low, np.minimum(place - low, 1).astype(np.float32)


def contrast_reach(radius: float) -> int:
    """Pixels up to which `contrast_mask` depends on its surroundings."""
    cell = _cell(radius)
    background = _span(radius / 2 / cell, 2) + 2 * round(_BACKGROUND * radius / cell)
    background += _span(0.3 * _BACKGROUND * radius / cell, 1.5)
    peak = round(_PEAK * radius / cell) + _span(_PEAK * radius / 2 / cell, 1.5)
    return cell * (max(background, peak) + 2)


def contrast_mask(
    smooth: NDArray[np.floating], window: Window, radius: float, share: float, least: float
) -> NDArray[np.bool_]:
    """Tell which pixels are bright by the measure of their surroundings.

    A pixel is foreground where it is ``share`` of the way from the local background to the local peak, and
    ``least`` above the background. The background is a grey opening, the peak a grey dilation, both of cell
    means, both smoothed.

    Parameters
    ----------
    smooth
        ``([z], y, x)`` float32 or float64; the grid has its precision.
    window
        What it shows.
    radius
        Of an object, px.
    share
        0 to 1.
    least
        In units of the image.
    """
    cells = Cells.of(window, _cell(radius))
    means = cells.means(smooth)
    if not means.size:
        return np.zeros(smooth.shape, np.bool_)
    r = radius / cells.size
    side = 2 * round(_BACKGROUND * r) + 1
    ground = _blurred(means, r / 2, 2)
    ground = ndimage.maximum_filter(ndimage.minimum_filter(ground, side), side)
    ground = _blurred(ground, 0.3 * _BACKGROUND * r, 1.5)
    peak = ndimage.maximum_filter(means, 2 * round(_PEAK * r) + 1)
    peak = _blurred(peak, _PEAK * r / 2, 1.5)
    kind = smooth.dtype.type
    height = np.maximum(kind(share) * (peak - ground), kind(least))
    return cells.above(smooth, ground + np.maximum(height, 0))


def otsu_reach(block: int) -> int:
    """Pixels up to which `otsu_mask` depends on its surroundings."""
    return 3 * block


def otsu_mask(smooth: NDArray[np.floating], window: Window, block: int, floor: float) -> NDArray[np.bool_]:
    """Tell which pixels of a plane are above Otsu's threshold of their surroundings.

    The threshold of a cell of ``block`` px is that of the 3 x 3 cells around it, linear between the cells'
    centres, and nowhere below ``floor``: where a cell holds nothing but background, Otsu parts its noise.
    """
    cells = Cells.of(window, block)
    grid = [b - a for a, b in zip(cells.first, cells.stop, strict=True)]
    threshold = np.full(grid, floor, smooth.dtype)
    start = window.box.start
    for at in np.ndindex(*grid):
        spans = []
        for axis, i in enumerate(at):
            low = max((cells.first[axis] + i - 1) * block, start[axis])
            high = min((cells.first[axis] + i + 2) * block, window.box.stop[axis])
            spans.append(slice(low - start[axis], high - start[axis]))
        threshold[at] = max(_otsu(smooth[tuple(spans)]), floor)
    return cells.above(smooth, threshold)


def _otsu(values: NDArray[np.floating]) -> float:
    """Otsu's threshold as `spatialdata_segment.core.statistics.Histogram` has it, of few values."""
    ordered = np.sort(values, axis=None).astype(np.float64)
    mass, n = np.cumsum(ordered), np.arange(1, ordered.size)
    steps = np.flatnonzero(ordered[1:] > ordered[:-1])
    if not steps.size:
        return float(ordered[-1])
    below, low = n[steps], mass[steps]
    above = ordered.size - below
    between = below * above * (low / below - (mass[-1] - low) / above) ** 2
    return float(ordered[steps[np.argmax(between)]])


def median_reach(block: int, step: int) -> int:
    """Pixels up to which `median_mask` depends on its surroundings."""
    return step * (block // 2 + 3)


def median_mask(
    image: NDArray[np.floating], window: Window, block: int, step: int, offset: float, ends: tuple[float, float]
) -> NDArray[np.bool_]:
    """Tell which pixels of a plane exceed the median of their surroundings by ``offset``.

    Parameters
    ----------
    image
        ``(y, x)``.
    window
        What it shows.
    block
        Side, odd, of the square whose median is taken, in pixels of the image thinned to every ``step``-th.
    step
        Every which pixel is looked at, from the first of the image.
    offset
        In units of the image.
    ends
        Least and greatest value of the whole image; medians are known to 1/65,535 of what lies between.
    """
    low, span = ends[0], (ends[1] - ends[0]) or 1.0
    first = [-(-a // step) for a in window.box.start]
    thinned = image[tuple(slice(k * step - a, None, step) for k, a in zip(first, window.box.start, strict=True))]
    if not thinned.size:
        return np.zeros(image.shape, np.bool_)
    levels = np.rint(np.clip((thinned - low) / span, 0, 1) * 65535).astype(np.uint16)
    local = (square_median(levels, block // 2) * (span / 65535) + (low + offset)).astype(image.dtype)
    full = window.image.stop
    between = []
    for axis in range(2):
        count = -(-full[axis] // step)
        at = np.arange(window.box.start[axis], window.box.stop[axis])
        place = np.clip((at + 0.5) * (count / full[axis]) - 0.5 - first[axis], 0, None)
        low = np.minimum(place.astype(np.int64), max(thinned.shape[axis] - 2, 0))
        between.append((low, np.minimum(place - low, 1).astype(np.float32)))
    out = np.zeros(image.shape, np.bool_)
    one = np.zeros(1, np.int64), np.zeros(1, np.float32)
    _above(_volume(image), _volume(local), one, between[0], between[1], _volume(out))
    return out


def _cell(radius: float) -> int:
    return max(1, round(radius / _CELLS_PER_RADIUS))


def _span(sigma: float, truncate: float) -> int:
    return int(truncate * sigma + 0.5)


def _blurred(image: NDArray[np.floating], sigma: float, truncate: float) -> NDArray[np.floating]:
    out: NDArray[np.floating] = ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=truncate)
    return out


def _volume(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.ndim == 3 else array[None]


def _three(numbers: Sequence[int], fill: int) -> NDArray[np.int64]:
    return np.array([fill] * (3 - len(numbers)) + list(numbers), np.int64)


@kernel
def _means(image: Any, offset: Any, size: Any, out: Any) -> Any:
    nz, ny, nx = out.shape
    for k in range(nz):
        z0, z1 = offset[0] + k * size[0], min(offset[0] + (k + 1) * size[0], image.shape[0])
        for j in range(ny):
            y0, y1 = offset[1] + j * size[1], min(offset[1] + (j + 1) * size[1], image.shape[1])
            for i in range(nx):
                x0, x1 = offset[2] + i * size[2], min(offset[2] + (i + 1) * size[2], image.shape[2])
                total = 0.0
                for z in range(z0, z1):
                    for y in range(y0, y1):
                        for x in range(x0, x1):
                            total += image[z, y, x]
                out[k, j, i] = total / ((z1 - z0) * (y1 - y0) * (x1 - x0))


@kernel
def _above(image: Any, grid: Any, along_z: Any, along_y: Any, along_x: Any, out: Any) -> Any:
    """Compare each pixel with the grid, linear between its points; positions and weights come along each axis."""
    (lz, wz), (ly, wy), (lx, wx) = along_z, along_y, along_x
    nz, ny, nx = image.shape
    gz, gy, gx = grid.shape
    row = np.empty(gx, grid.dtype)
    one = np.float32(1)
    for z in range(nz):
        k0 = lz[z]
        k1 = min(k0 + 1, gz - 1)
        for y in range(ny):
            j0 = ly[y]
            j1 = min(j0 + 1, gy - 1)
            for i in range(gx):
                a = grid[k0, j0, i] * (one - wy[y]) + grid[k0, j1, i] * wy[y]
                b = grid[k1, j0, i] * (one - wy[y]) + grid[k1, j1, i] * wy[y]
                row[i] = a * (one - wz[z]) + b * wz[z]
            for x in range(nx):
                i0 = lx[x]
                i1 = min(i0 + 1, gx - 1)
                out[z, y, x] = image[z, y, x] > row[i0] * (one - wx[x]) + row[i1] * wx[x]
