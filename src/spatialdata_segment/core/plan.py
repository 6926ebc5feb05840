"""The shard plan: the fewest equal cores, and the window that each of them reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import TYPE_CHECKING, Self

import numpy as np

from spatialdata_segment.core.boxes import Box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """Where a block of pixels lies.

    Attributes
    ----------
    box
        What is read: the core and its halo, cut at the image.
    core
        What the shard answers for. The cores of a plan tile the image.
    image
        The whole image.
    """

    box: Box
    core: Box
    image: Box

    @cached_property
    def open_low(self) -> tuple[bool, ...]:
        """Axes along which the window begins inside the image, so that pixels before it are unseen."""
        return tuple(a > b for a, b in zip(self.box.start, self.image.start, strict=True))

    @cached_property
    def open_high(self) -> tuple[bool, ...]:
        """Axes along which the window ends inside the image."""
        return tuple(a < b for a, b in zip(self.box.stop, self.image.stop, strict=True))

    @cached_property
    def edge(self) -> NDArray[np.int64]:
        """Whether the low and the high side of each axis ``(z, y, x)`` are open (1): ``(3, 2)``, 0 for no z."""
        edge = np.zeros((3, 2), np.int64)
        edge[3 - self.box.ndim :] = np.column_stack([self.open_low, self.open_high])
        return edge

    @property
    def is_whole(self) -> bool:
        """True where the window is the whole image, and nothing is unseen."""
        return self.box == self.image

    @property
    def flat(self) -> Window:
        """The window in each plane of a volume."""
        return Window(self.box.flat, self.core.flat, self.image.flat)

    @cached_property
    def own(self) -> Box:
        """What no other window of a plan holds, if their cores are not smaller than the halo."""
        sides = zip(self.box.start, self.core.start, self.core.stop, self.box.stop, strict=True)
        halo = tuple(max(b - a, d - c) for a, b, c, d in sides)
        return Window(self.core, self.core, self.image).shrink(halo)

    def shrink(self, margin: tuple[int, ...]) -> Box:
        """Return the window without ``margin`` pixels at its open sides."""
        return Box(
            tuple(a + m * o for a, m, o in zip(self.box.start, margin, self.open_low, strict=True)),
            tuple(b - m * o for b, m, o in zip(self.box.stop, margin, self.open_high, strict=True)),
        )

    def clearance(self, bbox: np.ndarray) -> np.ndarray:
        """Pixels between each object and the nearest open side.

        Parameters
        ----------
        bbox
            ``(n, 2 * ndim)`` starts, then stops, in indices of the whole image.

        Returns
        -------
        ``(n,)`` int64; a large number where no side is open.
        """
        ndim = self.box.ndim
        out = np.full(len(bbox), np.iinfo(np.int64).max, np.int64)
        for axis in range(ndim):
            if self.open_low[axis]:
                np.minimum(out, bbox[:, axis] - self.box.start[axis], out=out)
            if self.open_high[axis]:
                np.minimum(out, self.box.stop[axis] - bbox[:, ndim + axis], out=out)
        return out


@dataclass(frozen=True)
class Plan:
    """Cores of equal size (to a pixel) that tile the image, and the halo that each of them reads.

    Attributes
    ----------
    shape
        Of the image, axes ``([z], y, x)``.
    chunks
        Sizes of the cores along every axis, as dask writes them.
    halo
        Pixels read beyond the core on each side, per axis.
    """

    shape: tuple[int, ...]
    chunks: tuple[tuple[int, ...], ...]
    halo: tuple[int, ...]

    @classmethod
    def fewest(cls, shape: tuple[int, ...], shard_size: int, halo: tuple[int, ...]) -> Self:
        """Return the plan with the fewest equal cores of at most ``shard_size`` pixels.

        Thin cores read more halo than they save: among the plans of at most an eighth more cores than
        the fewest, the one that reads the fewest pixels is taken.
        """
        splits = _splits(shape, shard_size, halo)
        return cls(shape, tuple(_equal(n, k) for n, k in zip(shape, splits, strict=True)), halo)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of cores along every axis."""
        return tuple(len(c) for c in self.chunks)

    def __len__(self) -> int:
        return int(np.prod(self.grid))

    @property
    def image(self) -> Box:
        """The box of the whole image."""
        return Box.whole(self.shape)

    @property
    def flat(self) -> Plan:
        """The plan in each plane of a volume."""
        return Plan(self.shape[-2:], self.chunks[-2:], self.halo[-2:])

    @cached_property
    def _edges(self) -> tuple[np.ndarray, ...]:
        return tuple(np.concatenate([[0], np.cumsum(c)]) for c in self.chunks)

    def core(self, index: int) -> Box:
        """Return the core of a shard; shards are numbered in raster order."""
        at = np.unravel_index(index, self.grid)
        return Box(
            tuple(int(e[i]) for e, i in zip(self._edges, at, strict=True)),
            tuple(int(e[i + 1]) for e, i in zip(self._edges, at, strict=True)),
        )

    def window(self, index: int, halo: tuple[int, ...] | None = None) -> Window:
        """Return the window of a shard, with another halo than the plan's if one is given."""
        core = self.core(index)
        return Window(core.grow(self.halo if halo is None else halo, self.image), core, self.image)

    def touched(self, box: Box) -> Iterator[int]:
        """Yield the shards whose cores share pixels with ``box``, in raster order."""
        if box.size == 0:
            return
        at = self.span(np.array([[*box.start, *box.stop]]))[0].tolist()
        yield from self.within(tuple(at[: box.ndim]), tuple(at[box.ndim :]))

    def span(self, bbox: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return, of boxes ``(n, 2 * ndim)``, the first core along every axis, then the last ones plus 1."""
        ndim = len(self.shape)
        first = [np.searchsorted(e, bbox[:, i], "right") - 1 for i, e in enumerate(self._edges)]
        last = [np.searchsorted(e, bbox[:, ndim + i], "left") for i, e in enumerate(self._edges)]
        return np.stack([*first, *last], axis=1)

    def within(self, first: tuple[int, ...], last: tuple[int, ...]) -> Iterator[int]:
        """Yield the shards of a part of the grid, in raster order."""
        strides = [int(np.prod(self.grid[i + 1 :])) for i in range(len(self.grid))]
        for at in product(*(range(a, b) for a, b in zip(first, last, strict=True))):
            yield sum(i * s for i, s in zip(at, strides, strict=True))


def _equal(length: int, parts: int) -> tuple[int, ...]:
    edges = [length * i // parts for i in range(parts + 1)]
    return tuple(b - a for a, b in pairwise(edges))


def _splits(shape: tuple[int, ...], shard_size: int, halo: tuple[int, ...]) -> tuple[int, ...]:
    """Parts per axis."""
    *lead, last = shape
    grids = np.meshgrid(*[_part_counts(n, shard_size, shape) for n in lead], indexing="ij")
    counts = np.stack([g.ravel() for g in grids], axis=1)
    sizes = np.stack([-(-n // counts[:, i]) for i, n in enumerate(lead)], axis=1)
    width = np.clip(shard_size // sizes.prod(axis=1), 0, last)
    counts, sizes, width = counts[width > 0], sizes[width > 0], width[width > 0]
    parts = np.column_stack([counts, -(-last // width)])
    sizes = np.column_stack([sizes, -(-last // parts[:, -1])])
    total = parts.prod(axis=1)
    near = total <= total.min() * 9 // 8
    parts, sizes, total = parts[near], sizes[near], total[near]
    read = total * np.prod(sizes + 2.0 * np.array(halo) + 1, axis=1)
    best = np.lexsort((*reversed(parts.T), total, read))[0]
    return tuple(int(p) for p in parts[best])


def _part_counts(length: int, shard_size: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the numbers of parts worth trying: those that give different core sizes, not absurdly thin."""
    ideal = max(1, round((np.prod([float(s) for s in shape]) / shard_size) ** (1 / len(shape)) * 16)) + 16
    return np.arange(1, min(length, max(ideal, -(-length // max(shard_size, 1)))) + 1)
