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

_CUTS = 8
"""Cuts of one row that there is room for at first."""


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
        held, lengths, counts = _Growing((2,)), _Growing(), _Growing()
        for batch in batches:
            length, count = _ring_lengths(batch)
            held.append(_narrowed(shapely.get_coordinates(batch)))  # in the order of the rings
            lengths.append(length)
            counts.append(count)
        points, ring_stop = held.array(np.float32), np.cumsum(lengths.array(np.int64))
        stop = np.cumsum(counts.array(np.int64))
        return cls(points, ring_stop, stop, _bounds(points, ring_stop, stop))

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
    short = np.empty(points.shape, np.float32)
    return short if _narrow(points, short) else points


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
def _narrow(points: Any, short: Any) -> Any:
    """Write float64 points as float32; False where that changes one, which is to end it."""
    for k in range(len(points)):
        for axis in range(2):
            short[k, axis] = points[k, axis]
            if np.float64(short[k, axis]) != points[k, axis]:
                return False
    return True


@kernel
def _bounds(points: Any, ring_stop: Any, stop: Any) -> Any:
    """Return the box of each geometry, x and y from and to; NaN of what has no points."""
    bounds = np.full((len(stop), 4), np.nan)
    begin = 0
    for g in range(len(stop)):
        end = ring_stop[stop[g] - 1] if stop[g] > 0 else 0
        if end > begin:
            x0 = x1 = points[begin, 0]
            y0 = y1 = points[begin, 1]
            for k in range(begin + 1, end):
                x0, x1 = min(x0, points[k, 0]), max(x1, points[k, 0])
                y0, y1 = min(y0, points[k, 1]), max(y1, points[k, 1])
            bounds[g] = x0, y0, x1, y1
        begin = end
    return bounds


@kernel
def _first_centre(value: Any, begin: Any, size: Any) -> Any:
    """Return the first pixel whose centre is at or beyond ``value``, counted in the block and cut to it."""
    pixel = np.ceil(value - 0.5) - begin  # rounded before the block comes in: the same for every block
    if not pixel > 0:
        return 0
    return size if pixel > size else int(pixel)


@kernel
def _paint(out: Any, points: Any, ring_stop: Any, stop: Any, which: Any, ids: Any, y0: Any, x0: Any) -> None:
    """Edges cut the lines of a block's pixel centres; a geometry lies between the 1st and 2nd cut, the 3rd and 4th."""
    height, width = out.shape
    cuts, count = np.empty((height, _CUTS), np.int32), np.zeros(height, np.int32)
    for g in which:
        top, bottom = height, 0
        ring = stop[g - 1] if g > 0 else 0
        begin = ring_stop[ring - 1] if ring > 0 else 0
        for r in range(ring, stop[g]):
            to = _first_centre(np.float64(points[begin, 1]), y0, height)
            for e in range(begin, ring_stop[r] - 1):
                since, to = to, _first_centre(np.float64(points[e + 1, 1]), y0, height)
                if since == to:
                    continue
                ax, ay = np.float64(points[e, 0]), np.float64(points[e, 1])
                bx, by = np.float64(points[e + 1, 0]), np.float64(points[e + 1, 1])
                if ay > by:  # one direction, so that neighbours cut their common edge alike
                    ax, ay, bx, by = bx, by, ax, ay
                low, high = min(since, to), max(since, to)
                slope = (bx - ax) / (by - ay)
                for row in range(low, high):
                    if count[row] == cuts.shape[1]:
                        cuts = np.concatenate((cuts, np.empty_like(cuts)), axis=1)
                    cuts[row, count[row]] = _first_centre(ax + (y0 + row + 0.5 - ay) * slope, x0, width)
                    count[row] += 1
                top, bottom = min(top, low), max(bottom, high)
            begin = ring_stop[r]
        label = ids[g]
        for row in range(top, bottom):
            if count[row] > 2:
                cuts[row, : count[row]].sort()
            for k in range(0, count[row], 2):  # rings are closed: their cuts come in pairs
                low, high = min(cuts[row, k], cuts[row, k + 1]), max(cuts[row, k], cuts[row, k + 1])
                line = out[row, low:high]
                for c in range(len(line)):  # of a slice no index is checked for its sign: vector instructions
                    line[c] = label if line[c] == 0 else line[c]
            count[row] = 0
