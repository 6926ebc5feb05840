"""`polygons_to_labels`: polygons drawn as label images of any size; the geometry itself is in ``core.raster``.

Knows arrays, data frames and files of them, not SpatialData: pixel coordinates in, pixel coordinates out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import dask.array as da
import geopandas as gpd
import numpy as np
from dask.delayed import delayed

from spatialdata_segment._polygons import check_finite, checked_geometries, checked_ids
from spatialdata_segment.core.raster import Hits, Rings, paint
from spatialdata_segment.errors import InputError, is_whole

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, DTypeLike, NDArray

_BLOCK = 4096
"""Joining larger blocks costs less: fresh memory comes in huge pages."""
_BATCH = 1 << 12
"""Geometries that are taken apart at once: what they point to stays in the cache."""
_PER_POLYGON = 24
"""Bytes of a polygon's label, and of the blocks that it may have pixels in."""


def polygons_to_labels(
    polygons: gpd.GeoDataFrame | gpd.GeoSeries | ArrayLike | str | os.PathLike[str],
    shape: tuple[int, ...],
    *,
    ids: ArrayLike | None = None,
    chunks: Any = _BLOCK,
    dtype: DTypeLike | None = None,
) -> da.Array:
    """Draw polygons as a label image of any size, lazily.

    A pixel belongs to the polygon that holds its centre (at +0.5), by the even-odd rule; where polygons
    overlap, the first of them in the input wins. Each block draws the polygons whose bounding boxes meet it
    (:func:`spatialdata_segment.core.contours.fill`), and the result does not depend on the chunks. What is kept are
    the coordinates, 8 B a vertex where they are whole, 16 B where they are not.

    Parameters
    ----------
    polygons
        Polygons and multipolygons, px, ``(x, y)``; any float coordinates. What lies outside of the image is
        left out. Or the path of a file that :func:`~spatialdata_segment.formats.read_polygons` reads; of Parquet, the
        geometries are then never in memory all at once.
    shape
        ``(y, x)`` of the image, px; or ``(z, y, x)``, for a frame with a column ``z_index``, as `labels_to_polygons`
        returns it of volumes.
    ids
        ``(n,)`` the label of each, > 0, unique (in each plane). None: the column ``cell_id`` of integers, else the
        index, if it holds positive integers, else 1..n.
    chunks
        As for dask arrays.
    dtype
        Integer. None: uint32, or uint64 where an id needs it.

    Returns
    -------
    Labels of the shape, 0 = background.

    Raises
    ------
    InputError
        If the shape is no shape, a geometry is missing, not polygonal or not finite, an id is not positive, not unique
        or too large for the dtype, or planes are not told.
    MissingError
        No such file.
    """
    checked_shape(shape)
    drawing = Drawing.of_file(polygons) if isinstance(polygons, str | Path) else Drawing.of(polygons, ids)
    if isinstance(polygons, str | Path) and ids is not None:
        drawing = drawing.named(ids)
    return drawing.draw(shape, chunks, dtype)


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of an image ``(y, x)`` or ``(z, y, x)``."""
    sides = np.asarray(shape, object)
    if sides.ndim != 1 or len(sides) not in (2, 3) or not all(is_whole(n) and n >= 0 for n in sides):
        raise InputError(f"shape={shape!r}; expected (y, x) or (z, y, x) in px.")
    return tuple(int(n) for n in sides)


@dataclass(frozen=True)
class Drawing:
    """Polygons to draw: rings, labels, and planes where they are of a volume."""

    rings: Rings
    ids: NDArray[np.uint64]
    z: NDArray[np.int64] | None

    @classmethod
    def of(cls, polygons: gpd.GeoDataFrame | gpd.GeoSeries | ArrayLike, ids: ArrayLike | None = None) -> Drawing:
        """Take polygons in memory, checked."""
        geometries, index = checked_geometries(polygons, finite=False)
        frame = polygons if isinstance(polygons, gpd.GeoDataFrame) else None
        z = planes_of(frame["z_index"].to_numpy()) if frame is not None and "z_index" in frame else None
        if ids is None and frame is not None and "cell_id" in frame and frame["cell_id"].dtype.kind in "iu":
            ids = frame["cell_id"].to_numpy()
        rings = Rings.of(geometries[k : k + _BATCH] for k in range(0, len(geometries), _BATCH))
        check_finite(rings.endless())
        return cls(rings, unique_ids(ids, index, len(geometries), z), z)

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> Drawing:
        """Take the polygons of a file, checked."""
        from spatialdata_segment.formats._stream import batches

        ids, planes = [], []

        def shapes() -> Iterator[NDArray[np.object_]]:
            for batch in batches(path):
                ids.append(batch.ids)
                if batch.z is not None:
                    planes.append(batch.z)
                yield batch.geometry

        rings = Rings.of(shapes())
        numbers = np.concatenate(ids) if ids else None
        z = np.concatenate(planes) if planes else None
        try:
            check_finite(rings.endless())
            return cls(rings, unique_ids(numbers, None, len(rings), z), z)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def named(self, ids: ArrayLike) -> Drawing:
        """Return the same polygons with other labels."""
        return Drawing(self.rings, unique_ids(ids, None, len(self.rings), self.z), self.z)

    def __len__(self) -> int:
        return len(self.rings)

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """Type of the labels: uint32, or uint64 where an id needs it."""
        return _dtype(None, int(self.ids.max(initial=0)))

    @property
    def nbytes(self) -> int:
        """Bytes that are held while the polygons are drawn."""
        rings = self.rings
        arrays = rings.points, rings.ring_stop, rings.stop, rings.bounds, self.ids, self.z
        return sum(a.nbytes for a in arrays if a is not None) + _PER_POLYGON * len(self)

    def shape(self) -> tuple[int, ...]:
        """Return the least shape that holds all pixels of the polygons."""
        if not len(self):
            return (0, 0) if self.z is None else (0, 0, 0)
        x, y = np.ceil(np.nan_to_num(self.rings.bounds[:, 2:]).max(axis=0).clip(0)).astype(int).tolist()
        return (y, x) if self.z is None else (int(self.z.max()) + 1, y, x)

    def outside(self, shape: Sequence[int]) -> int:
        """Return how many polygons have no part in an image of a shape ``([z], y, x)``."""
        low, high = self.rings.bounds[:, :2], self.rings.bounds[:, 2:]
        out = (high <= 0).any(axis=1) | (low >= np.array(shape[:-3:-1])).any(axis=1)
        if self.z is not None and len(shape) == 3:
            out |= self.z >= shape[0]
        return int(out.sum())

    def draw(self, shape: Sequence[int], chunks: Any = _BLOCK, dtype: DTypeLike | None = None) -> da.Array:
        """Draw them lazily; see `polygons_to_labels`. Of an image without planes, planes are no matter."""
        z = self.z if len(shape) == 3 else None
        if len(shape) == 3 and z is None:
            raise InputError(f"shape={tuple(shape)!r} has planes, and the polygons do not tell theirs: add z_index.")
        kind = _dtype(dtype, int(self.ids.max(initial=0)))
        if len(shape) == 2:
            grid = da.core.normalize_chunks(chunks, shape, dtype=kind)
        else:
            sides = (1, chunks, chunks) if is_whole(chunks) else chunks
            grid = da.core.normalize_chunks(sides, shape, dtype=kind)
        painter = _Painter(self.rings, Hits.of(self.rings.bounds, grid, z), z, self.ids.astype(kind))
        drawn = da.map_blocks(
            _paint_block,
            painter=delayed(painter, traverse=False),
            chunks=grid,
            dtype=kind,
            meta=np.zeros((0,) * len(shape), kind),
        )
        return cast("da.Array", drawn)


def planes_of(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the planes of polygons, which are whole numbers."""
    if values.dtype.kind not in "iu":
        raise InputError(f"the column z_index is of type {values.dtype}: expected whole numbers, the planes.")
    return values.astype(np.int64)


def unique_ids(ids: ArrayLike | None, index: Any, n: int, z: NDArray[np.int64] | None) -> NDArray[np.uint64]:
    """Return the ids of polygons, unique in each plane; see `checked_ids`."""
    if z is None or ids is None:
        return checked_ids(ids, index, n)
    values = np.asarray(ids)
    found = np.zeros(n, np.uint64)
    order = np.argsort(z, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(z[order])) + 1):
        found[rows] = checked_ids(values[rows], None, len(rows))
    return found


@dataclass(frozen=True)
class _Painter:
    """The polygons of an image; one object that all blocks share."""

    rings: Rings
    hits: Hits
    z: NDArray[np.int64] | None
    ids: NDArray[np.integer]

    def paint(self, place: Sequence[tuple[int, int]], block: int) -> NDArray[np.integer]:
        """Draw a block: its pixels (start, stop) along each axis, its position among all in raster order."""
        out = np.zeros([stop - start for start, stop in place], self.ids.dtype)
        which, offset = self.hits.within(block), (place[-2][0], place[-1][0])
        if out.ndim == 2:
            paint(out, self.rings, which, self.ids, offset)
            return out
        assert self.z is not None
        for k, plane in enumerate(out):
            paint(plane, self.rings, which[self.z[which] == place[0][0] + k], self.ids, offset)
        return out


def _paint_block(*, painter: _Painter, block_info: dict[Any, Any]) -> NDArray[np.integer]:
    info = block_info[None]
    return painter.paint(info["array-location"], int(np.ravel_multi_index(info["chunk-location"], info["num-chunks"])))


def _dtype(dtype: DTypeLike | None, largest: int) -> np.dtype[np.integer]:
    if dtype is None:
        return np.dtype(np.uint32 if largest <= np.iinfo(np.uint32).max else np.uint64)
    kind: np.dtype[Any] = np.dtype(dtype)
    if kind.kind not in "iu" or largest > np.iinfo(kind).max:
        raise InputError(
            f"dtype={kind}; expected an integer type that holds the largest id, {largest}: "
            "leave it out, or pass 'uint64'."
        )
    return kind
