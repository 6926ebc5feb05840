"""The image as a network sees it: resized, so that cells have the size of those that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.resize import Taps, nearest, source_range, taps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spatialdata_segment.core.tiles import AxisTiles, Tiling


@dataclass(frozen=True)
class Resized:
    """Two grids: that of an image or a volume, and that of a network.

    Attributes
    ----------
    image
        ``([z], y, x)``.
    seen
        Shape of what the network sees.
    """

    image: tuple[int, ...]
    seen: tuple[int, ...]

    @classmethod
    def by(cls, image: tuple[int, ...], factor: float, anisotropy: float = 1.0) -> Self:
        """Resize an image by a factor, of which planes are ``anisotropy`` times as far apart as pixels."""
        along = (anisotropy, 1.0, 1.0)[-len(image) :]
        return cls(image, tuple(max(1, int(n * a * factor)) for n, a in zip(image, along, strict=True)))

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

    def pick(self, window: Box) -> tuple[NDArray[np.int64], ...]:
        """Return, for each axis, the pixels to the network that those of a window take without interpolation."""
        sides = zip(self.image, self.seen, window.start, window.stop, strict=True)
        return tuple(nearest(m, n, a, b) for n, m, a, b in sides)

    def source(self, box: Box) -> Box:
        """Return the pixels of the image of which a box to the network is interpolated."""
        sides = zip(self.image, self.seen, box.start, box.stop, strict=True)
        return _box([(a, b) if n == m else source_range(n, m, a, b, rounded=True) for n, m, a, b in sides])

    def to_network(self, box: Box) -> tuple[Taps, ...]:
        """Return what a box to the network is made of, axis by axis."""
        sides = zip(self.image, self.seen, box.start, box.stop, strict=True)
        return tuple(taps(n, m, a, b, rounded=True) for n, m, a, b in sides)

    def to_image(self, window: Box) -> tuple[Taps, ...]:
        """Return what a window of the image is made of, axis by axis."""
        sides = zip(self.image, self.seen, window.start, window.stop, strict=True)
        return tuple(taps(m, n, a, b) for n, m, a, b in sides)

    def placed(self, points: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the pixels of the image in whose place pixels ``(n, ndim)`` to the network lie."""
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
