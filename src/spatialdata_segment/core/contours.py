"""Label images to exact polygons and back: tracing, merging of tiles, filling.

Pixel ``(y, x)`` covers the square ``[x, x + 1] x [y, y + 1]``. Polygons are made from the corners of an
object alone, see :mod:`spatialdata_segment.core.rings`; nothing here reads files, dask or SpatialData.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import shapely

from spatialdata_segment.core import rings
from spatialdata_segment.core.raster import Rings, paint
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Outlines:
    """Outlines of objects, in order of their ids.

    Attributes
    ----------
    ids
        ``(n,)`` int64, ascending, unique, > 0.
    geometry
        ``(n,)`` object: shapely ``Polygon``, or ``MultiPolygon`` where the object has several 4-connected
        components. Vertices ``(x, y)`` in px on pixel edges, shells counter-clockwise (interior on the left
        where y points up), no collinear vertices, valid by OGC.
    """

    ids: NDArray[np.int64]
    geometry: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def empty(cls) -> Self:
        """Return no outline at all."""
        return cls(np.zeros(0, np.int64), np.zeros(0, object))


def trace(labels: NDArray[np.integer], offset: tuple[int, int] = (0, 0)) -> Outlines:
    """Trace the exact pixel-edge outline of every object of a label image.

    Components of one id that touch at a corner only are separate parts, and a hole that touches the outside
    at a corner stays a hole, so that every geometry is valid. :func:`fill` is the exact inverse.

    Parameters
    ----------
    labels
        ``(y, x)``, any integer dtype, 0 = background. Ids may be sparse.
    offset
        ``(y, x)`` of the array's first pixel in the whole image, px.

    Returns
    -------
    The outlines in whole-image px. They depend on the pixels alone: the same vertices in the same order for
    any way to the same object.

    Raises
    ------
    InputError
        If the array is not 2D, not integer, or holds negative ids or ids of 2**63 and more.
    """
    bits, y, x, plus = rings.corners(_as_signed(labels))
    ids = _ids(bits, labels.dtype)
    order = np.argsort(ids, kind="stable")  # the scan came in order of (y, x)
    return _build(ids[order], y[order] + offset[0], x[order] + offset[1], plus[order])


def merge(parts: Sequence[Outlines]) -> Outlines:
    """Join the outlines of the tiles of one image into those of the whole.

    A corner of a fragment is a signed point, and the corners of a union of disjoint fragments are the sums of
    theirs: what the seams brought in cancels. So the result is that of :func:`trace` on the whole image,
    vertex by vertex, in memory O(vertices of the objects that were cut).

    Parameters
    ----------
    parts
        Outlines of disjoint tiles as :func:`trace` made them, each with its tile's offset.

    Returns
    -------
    Every id once. The geometries of ids that one part alone holds are passed through.
    """
    parts = [p for p in parts if len(p)]
    if not parts:
        return Outlines.empty()
    ids = np.concatenate([p.ids for p in parts])
    geometry = np.concatenate([p.geometry for p in parts])
    unique, first, inverse, count = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
    merged = geometry[first]
    cut = count[inverse] > 1
    if cut.any():
        merged[count > 1] = _build(*_net_corners(ids[cut], geometry[cut])).geometry
    return Outlines(unique, merged)


def fill(
    out: NDArray[np.integer],
    geometries: NDArray[np.object_],
    ids: NDArray[np.integer],
    offset: tuple[int, int] = (0, 0),
) -> None:
    """Draw polygons into a block of a label image, in place.

    A pixel belongs to a polygon that holds its centre (at +0.5), by the even-odd rule over all rings of the
    geometry; a centre exactly on an edge belongs to the side of larger x, or y. Pixels of ``out`` that are
    not 0 stay as they are: where polygons overlap, the lowest position in the sequence wins. Edges are cut
    in whole-image coordinates, so the result does not depend on the block.

    Parameters
    ----------
    out
        ``(y, x)``, integer, writable, changed in place.
    geometries
        ``(n,)`` shapely polygons and multipolygons in whole-image px ``(x, y)``; empty ones and None draw
        nothing.
    ids
        ``(n,)`` integer: the label of each.
    offset
        ``(y, x)`` of the block's first pixel in the whole image, px.
    """
    drawn = np.asarray(ids).astype(out.dtype, copy=False)
    paint(out, Rings.of([geometries]), np.arange(len(geometries)), drawn, offset)


def _as_signed(labels: NDArray[np.integer]) -> NDArray[Any]:
    """Return the pixels as a locked C array of int32 or int64 of the same bits: two kernels serve all."""
    if labels.ndim != 2:
        raise InputError(f"labels have the shape {labels.shape}; expected two axes (y, x): pass plane by plane.")
    if labels.dtype.kind not in "iu":
        raise InputError(
            f"labels have the dtype {labels.dtype}; expected integers, 0 = background: "
            "convert with .astype('uint32'), or label a mask with skimage.measure.label first."
        )
    native = labels.dtype.newbyteorder("=")
    kind = np.dtype(np.int64 if native.itemsize == 8 else np.int32)
    same = np.ascontiguousarray(labels, native)
    pixels = (same.view(kind) if native.itemsize == kind.itemsize else same.astype(kind)).view()
    pixels.flags.writeable = False
    return pixels


def _ids(bits: NDArray[Any], dtype: np.dtype[np.integer]) -> NDArray[np.int64]:
    """Undo :func:`_as_signed` on the ids found."""
    ids = bits.view(dtype.newbyteorder("=")) if bits.itemsize == dtype.itemsize else bits
    if len(ids) and ids.min() < 0:
        raise InputError(f"labels hold the id {ids.min()}; expected ids > 0 and 0 for the background: relabel them.")
    if len(ids) and ids.max() > np.iinfo(np.int64).max:
        raise InputError(f"labels hold the id {ids.max()}; expected ids below 2**63: relabel them.")
    return ids.astype(np.int64, copy=False)


def _net_corners(
    ids: NDArray[np.int64], geometry: NDArray[np.object_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return the corners ``(id, y, x, plus)`` of unions of disjoint polygons, in order of (id, y, x)."""
    polygons, owner = shapely.get_parts(geometry, return_index=True)
    lines, polygon = shapely.get_rings(polygons, return_index=True)
    points, ring = shapely.get_coordinates(lines, return_index=True)
    points = points.astype(np.int64)
    start = np.flatnonzero(ring[1:] == ring[:-1])  # all but the point that closes each ring
    sign = np.where(points[start, 1] == points[start + 1, 1], 1, -1)  # plus: a horizontal edge begins
    key = np.column_stack((ids[owner[polygon[ring[start]]]], points[start, 1], points[start, 0]))
    order = np.lexsort((key[:, 2], key[:, 1], key[:, 0]))
    key = key[order]
    first = np.flatnonzero(np.r_[True, (key[1:] != key[:-1]).any(axis=1)])
    net = np.add.reduceat(sign[order], first)
    key = np.repeat(key[first], np.abs(net), axis=0)
    return key[:, 0], key[:, 1], key[:, 2], np.repeat(net, np.abs(net)) > 0


def _build(ids: NDArray[np.int64], y: NDArray[np.int64], x: NDArray[np.int64], plus: NDArray[np.bool_]) -> Outlines:
    """Make the outlines from corners in order of (id, y, x)."""
    if len(ids) == 0:
        return Outlines.empty()
    vertex, stop, owner = rings.walk(y, plus, *rings.links(ids, y, x, plus))
    start = np.r_[0, stop[:-1]]
    hole = ~plus[np.minimum.reduceat(vertex, start)]
    order = np.lexsort((hole, owner))  # by component, the shell first
    shells = np.flatnonzero(~hole[order])
    polygons = _polygons(vertex, start[order], (stop - start)[order], shells, x, y)
    of_polygon = ids[vertex[start[order][shells]]]
    unique, first, inverse, count = np.unique(of_polygon, return_index=True, return_inverse=True, return_counts=True)
    geometry = polygons[first]
    several = count > 1
    if several.any():
        part = several[inverse]
        geometry[several] = shapely.multipolygons(polygons[part], indices=(np.cumsum(several) - 1)[inverse[part]])
    return Outlines(unique, geometry)


def _polygons(
    vertex: NDArray[np.int64],
    start: NDArray[np.int64],
    length: NDArray[np.int64],
    shells: NDArray[np.int64],
    x: NDArray[np.int64],
    y: NDArray[np.int64],
) -> NDArray[np.object_]:
    """Return the polygons of rings, each shell followed by its holes; closes the rings."""
    ends = np.r_[0, np.cumsum(length + 1)]
    within = np.arange(ends[-1]) - np.repeat(ends[:-1], length + 1)
    within[ends[1:] - 1] = 0
    take = vertex[within + np.repeat(start, length + 1)]
    points = np.column_stack((x[take], y[take])).astype(np.float64)
    polygons: NDArray[np.object_] = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, points, (ends, np.r_[shells, len(length)])
    )
    return polygons
