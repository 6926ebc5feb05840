"""Polygons drawn into blocks of label images: their rings as flat arrays, where they lie, and the kernel that fills.

Flat arrays hold a million outlines in a third of the memory of geometries, and a block is drawn without making any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import shapely

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rings:
    """The rings of polygons and multipolygons.

    Attributes
    ----------
    points
        ``(m, 2)`` x, y in px, ring after ring, the first point of each once more at its end. float32 where that holds
        every coordinate exactly (pixel edges), else float64.
    ring_stop
        ``(rings,)`` where each ring ends in ``points``.
    stop
        ``(n,)`` where the rings of each geometry end in ``ring_stop``.
    bounds
        ``(n, 4)`` x and y from and to; NaN for what is empty.
    """

    points: NDArray[np.floating[Any]]
    ring_stop: Ints
    stop: Ints
    bounds: NDArray[np.float64]

    @classmethod
    def of(cls, batches: Iterable[NDArray[np.object_]]) -> Self:
        """Take the rings of geometries that come in batches; None and what is empty have none."""
        points, lengths, counts, bounds = _Growing((2,)), _Growing(), _Growing(), _Growing((4,))
        for batch in batches:
            length, count = _ring_lengths(batch)
            points.append(_narrowed(shapely.get_coordinates(batch)))  # in the order of the rings
            lengths.append(length)
            counts.append(count)
            bounds.append(shapely.bounds(batch).reshape(-1, 4))
        return cls(
            points.array(np.float32),
            np.cumsum(lengths.array(np.int64)),
            np.cumsum(counts.array(np.int64)),
            bounds.array(np.float64),
        )

    def __len__(self) -> int:
        return len(self.stop)

    def endless(self) -> Ints:
        """Return the geometries that have coordinates that are not finite."""
        is_finite = np.isfinite(self.points)
        if is_finite.all():
            return np.zeros(0, np.int64)
        point = np.flatnonzero(~is_finite.all(axis=1))
        ring = np.searchsorted(self.ring_stop, point, side="right")
        return np.unique(np.searchsorted(self.stop, ring, side="right"))


@dataclass(frozen=True)
class Hits:
    """Which geometries may have pixels in which block of an image.

    Attributes
    ----------
    start
        ``(blocks + 1,)`` where the geometries of each block begin in ``geometry``; blocks in raster order.
    geometry
        Positions of geometries, ascending within a block.
    """

    start: Ints
    geometry: Ints

    @classmethod
    def of(
        cls, bounds: NDArray[np.float64], chunks: Sequence[Sequence[int]], z: NDArray[np.int64] | None = None
    ) -> Self:
        """Find them.

        Parameters
        ----------
        bounds
            As in `Rings`.
        chunks
            Pixels of the blocks along ``([z], y, x)``.
        z
            The plane of each geometry, in an image with planes.
        """
        planes = np.zeros(len(bounds), np.int64) if z is None else z
        depth = chunks[0] if len(chunks) == 3 else (1,)
        rows, columns = chunks[-2:]
        z_stops = np.cumsum(depth)
        block_z = np.searchsorted(z_stops, planes, side="right")
        y0, ny = _span(bounds[:, 1], bounds[:, 3], rows)
        x0, nx = _span(bounds[:, 0], bounds[:, 2], columns)
        count = np.where((planes >= 0) & (block_z < len(depth)), ny * nx, 0)
        geometry = np.repeat(np.arange(len(bounds)), count)
        within = np.arange(len(geometry)) - np.repeat(np.cumsum(count) - count, count)
        wide = nx[geometry]
        row, column = y0[geometry] + within // np.maximum(wide, 1), x0[geometry] + within % np.maximum(wide, 1)
        block = (block_z[geometry] * len(rows) + row) * len(columns) + column
        order = np.argsort(block, kind="stable")
        start = np.searchsorted(block[order], np.arange(len(depth) * len(rows) * len(columns) + 1))
        return cls(start, geometry[order])

    def within(self, block: int) -> Ints:
        """Return the geometries of a block."""
        return self.geometry[self.start[block] : self.start[block + 1]]


def paint(
    out: NDArray[np.integer], rings: Rings, which: Ints, ids: NDArray[np.integer], offset: tuple[int, int]
) -> None:
    """Draw geometries one after the other where ``out`` is still 0; see `core.contours.fill` for the rule.

    Parameters
    ----------
    out
        ``(y, x)``, changed in place.
    rings
        All rings.
    which
        Positions of the geometries to draw, in order.
    ids
        ``(n,)`` the label of every geometry, of the type of ``out``.
    offset
        ``(y, x)`` of the first pixel of ``out``.
    """
    _paint(out, rings.points, rings.ring_stop, rings.stop, which, ids, offset[0], offset[1])


class _Growing:
    """Arrays appended to one that grows in place: `ndarray.resize` moves pages, and does not copy them."""

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self._shape = shape
        self._held: NDArray[Any] | None = None
        self._n = 0

    def append(self, part: NDArray[Any]) -> None:
        if self._held is None:
            self._held = np.empty((len(part), *self._shape), part.dtype)
        elif part.dtype.itemsize > self._held.dtype.itemsize:
            self._held = self._held[: self._n].astype(part.dtype)
        end = self._n + len(part)
        if end > len(self._held):
            self._held.resize((max(end, len(self._held) * 5 // 4), *self._shape), refcheck=False)
        self._held[self._n : end] = part
        self._n = end

    def array(self, dtype: type[np.generic]) -> NDArray[Any]:
        """Return what was appended; of the given type if that was nothing."""
        if self._held is None:
            return np.zeros((0, *self._shape), dtype)
        self._held.resize((self._n, *self._shape), refcheck=False)
        return self._held


def _ring_lengths(geometries: NDArray[np.object_]) -> tuple[Ints, Ints]:
    """Return the points of each ring, and the rings of each geometry; rings are made, which costs, where need be."""
    length = shapely.get_num_coordinates(geometries).astype(np.int64)
    is_plain = shapely.get_type_id(geometries) == shapely.GeometryType.POLYGON
    is_plain &= shapely.get_num_interior_rings(geometries) == 0
    count = (is_plain & (length > 0)).astype(np.int64)
    several = np.flatnonzero(~is_plain)
    if not len(several):
        return length[length > 0], count
    polygons, geometry = shapely.get_parts(geometries[several], return_index=True)
    lines, polygon = shapely.get_rings(polygons, return_index=True)
    owner = several[geometry[polygon]]
    count += np.bincount(owner, minlength=len(geometries))
    plain = np.flatnonzero(count * is_plain)
    order = np.argsort(np.concatenate((plain, owner)), kind="stable")
    lengths = np.concatenate((length[plain], shapely.get_num_coordinates(lines).astype(np.int64)))
    return lengths[order], count


def _narrowed(points: NDArray[np.float64]) -> NDArray[np.floating[Any]]:
    with np.errstate(over="ignore"):
        short = points.astype(np.float32)
    return short if np.array_equal(short, points) else points


def _span(low: NDArray[np.float64], high: NDArray[np.float64], chunks: Sequence[int]) -> tuple[Ints, Ints]:
    """Return the first block, and the number of blocks, that hold pixels between two coordinates."""
    stops = np.cumsum(chunks)
    size = int(stops[-1]) if len(stops) else 0
    first = np.clip(np.floor(np.nan_to_num(low, nan=size)), 0, size).astype(np.int64)
    last = np.clip(np.ceil(np.nan_to_num(high, nan=0)), 0, size).astype(np.int64)
    begin = np.searchsorted(stops, first, side="right")
    end = np.searchsorted(stops, last - 1, side="right")
    return begin, np.where(last > first, end - begin + 1, 0)


@kernel
def _first_centre(value: Any, begin: Any, size: Any) -> Any:
    """Return the first pixel whose centre is at or beyond ``value``, counted in the block and cut to it."""
    pixel = np.ceil(value - 0.5) - begin  # rounded before the block comes in: the same for every block
    if not pixel > 0:
        return 0
    return size if pixel > size else int(pixel)


@kernel
def _paint(out: Any, points: Any, ring_stop: Any, stop: Any, which: Any, ids: Any, y0: Any, x0: Any) -> None:
    """Crossings of edges with the line of a row's centres flip a bit; a sweep along the row adds them up."""
    height, width = out.shape
    flip = np.zeros((height, width + 1), np.bool_)
    for g in which:
        top, bottom, left, right = height, 0, width, 0
        ring = stop[g - 1] if g > 0 else 0
        begin = ring_stop[ring - 1] if ring > 0 else 0
        for r in range(ring, stop[g]):
            for e in range(begin, ring_stop[r] - 1):
                ay, by = np.float64(points[e, 1]), np.float64(points[e + 1, 1])
                if ay == by:
                    continue
                ax, bx = np.float64(points[e, 0]), np.float64(points[e + 1, 0])
                if ay > by:  # one direction, so that neighbours cut their common edge alike
                    ax, ay, bx, by = bx, by, ax, ay
                r0, r1 = _first_centre(ay, y0, height), _first_centre(by, y0, height)
                for row in range(r0, r1):
                    cut = ax + (y0 + row + 0.5 - ay) * ((bx - ax) / (by - ay))
                    c = _first_centre(cut, x0, width)
                    flip[row, c] = not flip[row, c]
                    left, right = min(left, c), max(right, c)
                top, bottom = min(top, r0), max(bottom, r1)
            begin = ring_stop[r]
        for row in range(top, bottom):
            inside = False
            for c in range(left, right + 1):
                if flip[row, c]:
                    inside = not inside
                    flip[row, c] = False
                if inside and c < width and out[row, c] == 0:
                    out[row, c] = ids[g]
