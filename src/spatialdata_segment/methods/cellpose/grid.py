"""The image as a network sees it: resized, so that cells have the size of those that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.resize import Taps, nearest, source_range, taps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spatialdata_segment.core.tiles import AxisTiles, Tiling


@dataclass(frozen=True)
class Resized:
    """Two grids: that of an image, and that of a network.

    Attributes
    ----------
    image
        ``(y, x)``.
    factor
        By which the image is resized.
    """

    image: tuple[int, int]
    factor: float

    @cached_property
    def seen(self) -> tuple[int, int]:
        """Shape of what the network sees."""
        if self.factor == 1.0:
            return self.image
        y, x = (max(1, int(n * self.factor)) for n in self.image)
        return y, x

    @property
    def is_same(self) -> bool:
        """Whether both grids are one."""
        return self.seen == self.image

    def needed(self, window: Box) -> Box:
        """Return the pixels to the network of which a window of the image is interpolated."""
        sides = zip(self.image, self.seen, window.start, window.stop, strict=True)
        return _box([(a, b) if n == m else source_range(m, n, a, b) for n, m, a, b in sides])

    def picked(self, window: Box) -> Box:
        """Return the pixels to the network that those of a window take without interpolation."""
        sides = zip(self.pick(window), self.image, self.seen, window.stop, strict=True)
        return _box([(int(at[0]), m if b == n else int(at[-1]) + 1) for at, n, m, b in sides])

    def picking(self, box: Box) -> Box:
        """Return the least window that `picked` gives all of a box for."""
        sides = []
        for n, m, a, b in zip(self.image, self.seen, box.start, box.stop, strict=True):
            taken = np.arange(n) if n == m else nearest(m, n, 0, n)
            start = int(np.searchsorted(taken, a, "right")) - 1
            sides.append((start, min(n, max(start, int(np.searchsorted(taken, b - 1))) + 1)))
        return _box(sides)

    def pick(self, window: Box) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the row and the column to the network that those of a window take without interpolation."""
        sides = zip(self.image, self.seen, window.start, window.stop, strict=True)
        rows, columns = (nearest(m, n, a, b) for n, m, a, b in sides)
        return rows, columns

    def source(self, box: Box) -> Box:
        """Return the pixels of the image of which a box to the network is interpolated."""
        sides = zip(self.image, self.seen, box.start, box.stop, strict=True)
        return _box([(a, b) if n == m else source_range(n, m, a, b, rounded=True) for n, m, a, b in sides])

    def to_network(self, box: Box) -> tuple[Taps, Taps]:
        """Return what a box to the network is made of."""
        sides = zip(self.image, self.seen, box.start, box.stop, strict=True)
        rows, columns = (taps(n, m, a, b, rounded=True) for n, m, a, b in sides)
        return rows, columns

    def to_image(self, window: Box) -> tuple[Taps, Taps]:
        """Return what a window of the image is made of."""
        sides = zip(self.image, self.seen, window.start, window.stop, strict=True)
        rows, columns = (taps(m, n, a, b) for n, m, a, b in sides)
        return rows, columns

    def placed(self, points: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the pixels of the image in whose place pixels ``(n, 2)`` to the network lie."""
        scale = np.array(self.image) / np.array(self.seen)
        placed: NDArray[np.int64] = np.floor((points + 0.5) * scale).astype(np.int64)
        inside: NDArray[np.int64] = np.minimum(placed, np.array(self.image) - 1)
        return inside


def tiled(tiling: Tiling, box: Box) -> Box:
    """Return the pixels that the tiles of a box hold, as far as the image goes."""
    return _box([_held(axis, a, b) for axis, a, b in zip(tiling.axes, box.start, box.stop, strict=True)])


def _held(axis: AxisTiles, start: int, stop: int) -> tuple[int, int]:
    tiles = axis.meeting(start, stop)
    return max(0, int(axis.starts[tiles[0]])), min(axis.length, int(axis.starts[tiles[-1]]) + axis.side)


def _box(ranges: list[tuple[int, int]]) -> Box:
    return Box(tuple(a for a, _ in ranges), tuple(b for _, b in ranges))
