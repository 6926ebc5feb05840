"""Boxes of pixels: half-open, in pixel indices of the whole image, axes ``([z], y, x)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """The pixels ``start <= index < stop`` along every axis."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Self:
        """Return the box of an image of that shape."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.start)

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels along every axis; 0 where the box is empty."""
        return tuple(max(b - a, 0) for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of pixels."""
        n = 1
        for s in self.shape:
            n *= s
        return n

    @property
    def slices(self) -> tuple[slice, ...]:
        """Index of the box in the whole image."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def within(self, outer: Box) -> tuple[slice, ...]:
        """Index of the box in an array that covers ``outer``."""
        return tuple(slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, outer.start, strict=True))

    def intersect(self, other: Box) -> Box:
        """Return the common part; its ``size`` is 0 where there is none."""
        return Box(
            tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True)),
            tuple(min(a, b) for a, b in zip(self.stop, other.stop, strict=True)),
        )

    def union(self, other: Box) -> Box:
        """Return the smallest box that holds both."""
        return Box(
            tuple(min(a, b) for a, b in zip(self.start, other.start, strict=True)),
            tuple(max(a, b) for a, b in zip(self.stop, other.stop, strict=True)),
        )

    def grow(self, halo: tuple[int, ...], bounds: Box) -> Box:
        """Return the box with ``halo`` pixels more on each side, cut at ``bounds``."""
        return Box(
            tuple(a - h for a, h in zip(self.start, halo, strict=True)),
            tuple(b + h for b, h in zip(self.stop, halo, strict=True)),
        ).intersect(bounds)

    @property
    def flat(self) -> Box:
        """The box along ``(y, x)`` alone."""
        return Box(self.start[-2:], self.stop[-2:])

    def in_plane(self, z: int) -> Box:
        """Return a box ``(y, x)`` as that of one plane of a volume."""
        return Box((z, *self.start), (z + 1, *self.stop))

    def holds(self, points: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Tell which of the ``(n, ndim)`` points lie inside."""
        inside: NDArray[np.bool_] = np.all((points >= self.start) & (points < self.stop), axis=1)
        return inside

    def __str__(self) -> str:
        axes = "zyx"[-self.ndim :]
        return ", ".join(f"{n} {a}:{b}" for n, a, b in zip(axes, self.start, self.stop, strict=True))
