"""Percentiles of an image by blocks: what is dark and what is bright, place by place.

The blocks are those of Cellpose's ``tile_norm_blocksize``: spread evenly over the image, sharing a fifth or more.
Their percentiles are smoothed by a Gaussian of one block and interpolated between the blocks. The grid is that of
the whole image, so that a place has the same levels in every window.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.resize import taps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spatialdata_segment.core.boxes import Box

_SHARED = 0.1
_RADIUS = 4
"""Blocks, to which a Gaussian of one block is cut."""


@dataclass(frozen=True)
class LocalLevels:
    """Levels of an image.

    Attributes
    ----------
    shape
        ``(y, x)`` of the whole image.
    block
        Side of a block, px.
    percentiles
        Of the lower and the upper level, 0 to 100.
    flat
        Blocks whose levels are no farther apart do not count.
    """

    shape: tuple[int, int]
    block: int
    percentiles: tuple[float, float]
    flat: float = 1e-3

    @cached_property
    def _starts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        first, second = (self._axis(n) for n in self.shape)
        return first, second

    def _axis(self, length: int) -> NDArray[np.int64]:
        n = 1 if length <= self.block else ceil((1 + 2 * _SHARED) * length / self.block)
        return np.linspace(0, max(length - self.block, 0), n).astype(np.int64)

    def reach(self) -> int:
        """Return how many pixels around a pixel its levels depend on, at most."""
        return (_RADIUS + 2) * self.block + self.block

    def of(
        self, image: NDArray[Any], origin: tuple[int, int], box: Box
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the lower and the upper level of every pixel of a box.

        Parameters
        ----------
        image
            ``(c, y, x)``: a part of the image that holds the box and `reach` around it, as far as the image goes.
        origin
            ``(y, x)`` of its first pixel.
        box
            ``(y, x)``, in indices of the whole image.

        Returns
        -------
        Two arrays ``(c, y, x)``; both are 0 where no block near by has a signal.
        """
        sides = list(zip(self._starts, self.shape, box.start, box.stop, strict=True))
        places = [taps(len(starts), n, a, b) for starts, n, a, b in sides]
        near = [
            np.arange(max(0, int(t.first.min()) - _RADIUS), min(len(s), int(t.second.max()) + _RADIUS + 1))
            for t, (s, *_) in zip(places, sides, strict=True)
        ]
        levels = self._blocks(image, origin, near)
        grid = _smooth(levels, (levels[1] - levels[0] > self.flat).astype(np.float64))
        down, across = (t.weight.astype(np.float64) for t in places)
        y0, y1, x0, x1 = (i - n[0] for t, n in zip(places, near, strict=True) for i in (t.first, t.second))
        top = grid[:, :, y0] * (1 - down)[:, None] + grid[:, :, y1] * down[:, None]
        found = (top[..., x0] * (1 - across) + top[..., x1] * across).astype(np.float32)
        return found[0], found[1]

    def _blocks(
        self, image: NDArray[Any], origin: tuple[int, int], near: list[NDArray[np.int64]]
    ) -> NDArray[np.float64]:
        """Return the percentiles ``(2, c, rows, columns)`` of some blocks."""
        out = np.empty((2, len(image), len(near[0]), len(near[1])))
        for j, row in enumerate(near[0]):
            y = int(self._starts[0][row]) - origin[0]
            for i, column in enumerate(near[1]):
                x = int(self._starts[1][column]) - origin[1]
                assert y >= 0
                assert x >= 0
                part = image[:, y : y + self.block, x : x + self.block].reshape(len(image), -1)
                part = part.view(np.uint8) if part.dtype == bool else part
                out[:, :, j, i] = np.percentile(part, self.percentiles, axis=1)
        return out


def _smooth(levels: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smooth ``(2, c, rows, columns)`` among the blocks that count; 0 where none is near."""
    kernel = np.exp(-0.5 * np.arange(-_RADIUS, _RADIUS + 1) ** 2)
    total = _blurred(weights, kernel)
    sums = np.stack([_blurred(level * weights, kernel) for level in levels])
    return np.where(total > 0, sums / np.where(total > 0, total, 1), 0.0)


def _blurred(grid: NDArray[np.float64], kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum with the weights of a kernel along the last two axes; nothing lies beyond the grid."""
    for axis in (-2, -1):
        moved = np.moveaxis(grid, axis, -1)
        padded = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(_RADIUS, _RADIUS)])
        n = moved.shape[-1]
        summed = np.zeros_like(moved)
        for k, weight in enumerate(kernel):  # one order of summation, whatever the window
            summed += weight * padded[..., k : k + n]
        grid = np.moveaxis(summed, -1, axis)
    return grid
