"""Tiles of a network over a whole image, and the blending of what it says of them.

The layout is a function of the image's shape alone, and that of Cellpose: the image is padded with zeros to
multiples of 16 px and 8 px more on each side, tiles are spread evenly, and blend with weights that fall off
towards their sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MULTIPLE, _MARGIN = 16, 8
_FALL, _FULL = 7.5, 20.0
"""px: how fast weights fall off, and at what distance from a tile's side they have fallen to a half."""
_LEAST_SIDE = 224


@dataclass(frozen=True)
class AxisTiles:
    """Tiles along one axis; positions are those of the image that is not padded, and may lie beyond it.

    Attributes
    ----------
    length
        Pixels of the image.
    starts
        ``(n,)`` first pixel of each tile.
    side
        Pixels of a tile.
    weights
        ``(side,)`` in the blend.
    """

    length: int
    starts: NDArray[np.int64]
    side: int
    weights: NDArray[np.float64]

    def meeting(self, start: int, stop: int) -> range:
        """Return which tiles hold a pixel of ``start`` to ``stop``."""
        first = int(np.searchsorted(self.starts + self.side, start, "right"))
        return range(first, int(np.searchsorted(self.starts, stop, "left")))

    def total(self, start: int, stop: int) -> NDArray[np.float64]:
        """Return the sum of the weights for the pixels from ``start`` to ``stop``."""
        out = np.zeros(stop - start)
        for k in self.meeting(start, stop):
            a, b = max(start, int(self.starts[k])), min(stop, int(self.starts[k]) + self.side)
            out[a - start : b - start] += self.weights[a - self.starts[k] : b - self.starts[k]]
        return out


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of an image lie.

    Attributes
    ----------
    shape
        ``(y, x)`` of the image that the network sees.
    tile
        Side of a tile, px.
    overlap
        Of two tiles, as a share of the side: about twice this is shared.
    mirrored
        Tiles overlap by half, and of four that overlap three are mirrored, along y, x and both.
    full
        No tile is smaller than ``tile``, as Cellpose 4 needs it.
    """

    shape: tuple[int, int]
    tile: int = 224
    overlap: float = 0.1
    mirrored: bool = False
    full: bool = False

    @cached_property
    def axes(self) -> tuple[AxisTiles, AxisTiles]:
        """The tiles along y and x."""
        pads = [self._padding(n) for n in self.shape]
        padded = [low + n + high for n, (low, high) in zip(self.shape, pads, strict=True)]
        least = self.tile if self.mirrored or self.full else 0
        sides = [max(least, min(self.tile, n)) for n in padded]
        widest = max(_LEAST_SIDE, *sides)
        tiles = zip(self.shape, pads, padded, sides, strict=True)
        first, second = (self._axis(n, low, long, side, widest) for n, (low, _), long, side in tiles)
        return first, second

    def _padding(self, length: int) -> tuple[int, int]:
        if self.full and length < self.tile:
            lacking = max(0, self.tile - length - 2 * _MARGIN)
        else:
            lacking = ceil(length / _MULTIPLE) * _MULTIPLE - length
        return _MARGIN + lacking // 2, _MARGIN + lacking - lacking // 2

    def _axis(self, length: int, before: int, padded: int, side: int, widest: int) -> AxisTiles:
        if self.mirrored:
            padded = max(padded, side)
            n = max(2, ceil(2.0 * padded / side))
        else:
            share = min(0.5, max(0.05, self.overlap))
            n = 1 if padded <= self.tile else ceil((1.0 + 2 * share) * padded / self.tile)
        starts = np.linspace(0, padded - side, n).astype(np.int64)
        return AxisTiles(length, starts - before, side, _weights(side, widest))


def _weights(side: int, widest: int) -> NDArray[np.float64]:
    """Return the middle ``side`` of the weights of a tile of the side ``widest``."""
    at = np.arange(widest)
    away = np.abs(at - at.mean())
    weights = 1 / (1 + np.exp((away - (widest / 2 - _FULL)) / _FALL))
    return np.asarray(weights[widest // 2 - side // 2 : widest // 2 + side // 2 + side % 2])
