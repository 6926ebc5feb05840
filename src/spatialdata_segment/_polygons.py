"""Label images to polygons and back at any size; the geometry itself is in ``core.contours``.

Knows arrays and data frames, not SpatialData: pixel coordinates in, pixel coordinates out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, cast

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import xarray as xr
from dask.base import compute
from dask.callbacks import Callback
from dask.delayed import delayed
from tqdm.auto import tqdm

from spatialdata_segment.core.contours import Outlines, fill, merge, trace
from spatialdata_segment.errors import InputError, is_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, DTypeLike, NDArray

_BLOCK = 2048
_POLYGONAL = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)


def labels_to_polygons(
    labels: NDArray[np.integer] | da.Array | xr.DataArray,
    *,
    n_jobs: int | None = None,
    progress: bool = True,
) -> gpd.GeoDataFrame:
    """Outline every object of a label image of any size, exactly.

    The image is read block by block; memory is O(polygons) plus one block a thread. The outlines run along
    the pixel edges, holes included, and are those of the whole image whatever the chunks:
    :func:`polygons_to_labels` gives back the labels bit for bit. Method: signed corners of the blocks, added
    up over the seams (:func:`spatialdata_segment.core.contours.merge`).

    Parameters
    ----------
    labels
        ``(y, x)`` or ``(z, y, x)``, integer, 0 = background. The axes of an :class:`xarray.DataArray` have
        these names, in any order. A dask chunk above 2048 x 2048 is computed once and traced in pieces.
    n_jobs
        Threads. None: dask's scheduler as it is configured, or a distributed client where there is one.
    progress
        Whether to show a bar; with a distributed client it moves at the end only.

    Returns
    -------
    One row an object, ascending by id, the index ``cell_id`` (int64), the column ``geometry``: Polygon, or
    MultiPolygon where it has several 4-connected components. Units px: the pixel ``(y, x)`` covers
    ``[x, x + 1] x [y, y + 1]``. For ``(z, y, x)``: one row an object and plane, ascending by plane and id, the
    columns ``z_index`` (int64), ``cell_id``, ``geometry``; the index counts the rows.

    Raises
    ------
    InputError
        If the axes are others, the dtype is not integer, or an id is negative or 2**63 and more.
    """
    check_threads(n_jobs)
    planes = _planes(labels)
    starts = [np.cumsum((0, *c[:-1])).tolist() for c in planes.chunks]
    blocks = planes.to_delayed().ravel()
    tasks = [delayed(_trace_block)(b, s) for b, s in zip(blocks, product(*starts), strict=True)]
    parts: dict[int, list[Outlines]] = {}
    for found in _compute(tasks, n_jobs, progress):
        for z, outlines in found:
            parts.setdefault(z, []).append(outlines)
    return frame_of({z: merge(p) for z, p in sorted(parts.items())}, labels.ndim)


def polygons_to_labels(
    polygons: gpd.GeoDataFrame | gpd.GeoSeries | ArrayLike,
    shape: tuple[int, int],
    *,
    ids: ArrayLike | None = None,
    chunks: Any = _BLOCK,
    dtype: DTypeLike | None = None,
) -> da.Array:
    """Draw polygons as a label image of any size, lazily.

    A pixel belongs to the polygon that holds its centre (at +0.5), by the even-odd rule; where polygons
    overlap, the first of them in the input wins. Each block draws the polygons that a tree finds in it
    (:func:`spatialdata_segment.core.contours.fill`), and the result does not depend on the chunks.

    Parameters
    ----------
    polygons
        Polygons and multipolygons, px, ``(x, y)``; any float coordinates. What lies outside of the image is
        left out. Of planes, pass those of one: ``frame[frame.z_index == z].set_index("cell_id")``.
    shape
        ``(y, x)`` of the image, px.
    ids
        ``(n,)`` the label of each, > 0, unique. None: the index, if it holds positive integers, else 1..n.
    chunks
        As for dask arrays.
    dtype
        Integer. None: uint32, or uint64 where an id needs it.

    Returns
    -------
    ``(y, x)``, 0 = background.

    Raises
    ------
    InputError
        If the shape has not two axes, a geometry is missing, not polygonal or not finite, an id is not
        positive, not unique or too large for the dtype.
    """
    if np.shape(shape) != (2,) or min(shape) < 0:
        raise InputError(f"shape={shape!r}; expected (y, x) in px: draw plane by plane and stack the results.")
    geometries, index = checked_geometries(polygons)
    labels = checked_ids(ids, index, len(geometries))
    kind = _dtype(dtype, int(labels.max(initial=0)))
    painter = delayed(_Painter(shapely.STRtree(geometries), labels, kind), traverse=False)
    grid = da.core.normalize_chunks(chunks, shape, dtype=kind)
    meta = np.zeros((0, 0), kind)
    drawn = da.map_blocks(_paint_block, painter=painter, chunks=grid, dtype=kind, meta=meta)
    return cast("da.Array", drawn)


def _planes(labels: NDArray[np.integer] | da.Array | xr.DataArray) -> da.Array:
    """Return the labels as a dask array ``(z, y, x)`` in chunks of about the size to trace."""
    if isinstance(labels, xr.DataArray):
        axes = ("z", "y", "x")[-labels.ndim :]
        if labels.ndim not in (2, 3) or set(labels.dims) != set(axes):
            raise InputError(f"labels have the axes {labels.dims}; expected (y, x) or (z, y, x): select or rename.")
    data: Any = labels.transpose(*axes).data if isinstance(labels, xr.DataArray) else labels
    if data.ndim not in (2, 3):
        raise InputError(f"labels have the shape {data.shape}; expected the axes (y, x) or (z, y, x).")
    if data.dtype.kind not in "iu":
        raise InputError(
            f"labels have the dtype {data.dtype}; expected integers, 0 = background: "
            "convert with .astype('uint32'), or label a mask with skimage.measure.label first."
        )
    if not isinstance(data, da.Array):
        plane = (1,) * (data.ndim - 2)
        chunks = (*plane, _BLOCK, _BLOCK)
        data = da.from_array(data, chunks=chunks, name=False)
    planes: Any = data if data.ndim == 3 else data[None]
    if any(np.isnan(c).any() for c in planes.chunks):
        raise InputError("labels have chunks of unknown size; call .compute_chunk_sizes() on them first.")
    z, y, x = planes.chunks
    return cast("da.Array", planes.rechunk((z, grouped(y, _BLOCK), grouped(x, _BLOCK))))


def check_threads(n_jobs: int | None) -> None:
    """Raise where ``n_jobs`` is neither a number of threads nor None, dask's own choice."""
    if n_jobs is not None and not (is_whole(n_jobs) and n_jobs >= 1):
        raise InputError(f"n_jobs={n_jobs!r}; expected 1 or more threads, or None for dask's own choice.")


def grouped(chunks: Sequence[int], side: int) -> tuple[int, ...]:
    """Join neighbouring chunks up to a side; larger ones stay, as they are computed whole."""
    groups: list[int] = []
    for c in chunks:
        if groups and groups[-1] + c <= side:
            groups[-1] += c
        else:
            groups.append(c)
    return tuple(groups)


def _trace_block(block: NDArray[np.integer], start: tuple[int, int, int]) -> list[tuple[int, Outlines]]:
    z0, y0, x0 = start
    corners = [(y, x) for y in range(0, block.shape[1], _BLOCK) for x in range(0, block.shape[2], _BLOCK)]
    return [
        (z0 + z, merge([trace(plane[y : y + _BLOCK, x : x + _BLOCK], (y0 + y, x0 + x)) for y, x in corners]))
        for z, plane in enumerate(np.asarray(block))
    ]


def _compute(tasks: list[Any], n_jobs: int | None, progress: bool) -> tuple[list[tuple[int, Outlines]], ...]:
    options = {} if n_jobs is None else {"scheduler": "threads", "num_workers": n_jobs}
    keys = {t.key for t in tasks}
    with tqdm(total=len(tasks), desc="polygons", unit="block", disable=not progress) as bar:

        def count(key: Any, *_: object) -> None:
            if key in keys:
                bar.update()

        with Callback(posttask=count):
            found = compute(*tasks, **options)
        bar.update(len(tasks) - bar.n)  # a distributed scheduler does not call back
    return cast("tuple[list[tuple[int, Outlines]], ...]", found)


def frame_of(planes: Mapping[int, Outlines], ndim: int) -> gpd.GeoDataFrame:
    """Return outlines, by plane, as `labels_to_polygons` has them for labels of 2 or 3 axes."""
    if ndim == 2:
        outlines = planes.get(0, Outlines.empty())
        return gpd.GeoDataFrame({"geometry": outlines.geometry}, index=pd.Index(outlines.ids, name="cell_id"))
    found = [*planes.values(), Outlines.empty()]
    return gpd.GeoDataFrame(
        {
            "z_index": np.repeat(np.array([*planes, 0], np.int64), [len(p) for p in found]),
            "cell_id": np.concatenate([p.ids for p in found]),
            "geometry": np.concatenate([p.geometry for p in found]),
        }
    )


@dataclass(frozen=True)
class _Painter:
    """The polygons of an image; one object that all blocks share."""

    tree: shapely.STRtree
    ids: NDArray[np.uint64]
    dtype: np.dtype[np.integer]

    def paint(self, y: tuple[int, int], x: tuple[int, int]) -> NDArray[np.integer]:
        """Draw the pixels of rows ``y`` and columns ``x`` (start, stop)."""
        out = np.zeros((y[1] - y[0], x[1] - x[0]), self.dtype)
        hit = np.sort(self.tree.query(shapely.box(x[0], y[0], x[1], y[1])))
        fill(out, self.tree.geometries[hit], self.ids[hit], (y[0], x[0]))
        return out


def _paint_block(*, painter: _Painter, block_info: dict[Any, Any]) -> NDArray[np.integer]:
    return painter.paint(*block_info[None]["array-location"])


def checked_geometries(
    polygons: gpd.GeoDataFrame | gpd.GeoSeries | ArrayLike,
) -> tuple[NDArray[np.object_], pd.Index | None]:
    """Return the geometries, checked, and their index where they have one."""
    index = polygons.index if isinstance(polygons, gpd.GeoDataFrame | gpd.GeoSeries) else None
    values = polygons.geometry if isinstance(polygons, gpd.GeoDataFrame) else polygons
    geometries = np.asarray(values, dtype=object)
    strange = [i for i, g in enumerate(geometries.ravel()) if not isinstance(g, shapely.Geometry)]
    if geometries.ndim != 1 or strange:
        found = repr(geometries.ravel()[strange[0]]) if strange else f"an array of shape {geometries.shape}"
        raise InputError(f"polygons hold {found}; expected a sequence of shapely polygons: drop what is missing.")
    wrong = np.flatnonzero(~np.isin(shapely.get_type_id(geometries), _POLYGONAL))
    if len(wrong):
        raise InputError(
            f"polygons hold a {geometries[wrong[0]].geom_type} at position {wrong[0]} ({len(wrong)} in all); "
            "expected Polygon or MultiPolygon: give points a radius with .buffer(), or drop them."
        )
    points, owner = shapely.get_coordinates(geometries, return_index=True)
    endless = owner[~np.isfinite(points).all(axis=1)]
    if len(endless):
        raise InputError(
            f"the polygon at position {endless[0]} has coordinates that are not finite: repair or drop it."
        )
    return geometries, index


def checked_ids(ids: ArrayLike | None, index: pd.Index | None, n: int) -> NDArray[np.uint64]:
    if ids is None and index is not None and index.dtype.kind in "iu" and n and index.min() > 0:
        ids = index.to_numpy()
    if ids is None:
        return np.arange(1, n + 1, dtype=np.uint64)
    values = np.asarray(ids)
    if n == 0 and values.size == 0:
        return np.zeros(0, np.uint64)
    if values.shape != (n,) or values.dtype.kind not in "iu":
        raise InputError(f"ids have the shape {values.shape} and dtype {values.dtype}; expected {n} integers.")
    if values.min() < 1:
        raise InputError(f"ids hold {values.min()}; expected positive integers, as 0 is the background: renumber them.")
    unique, count = np.unique(values, return_counts=True)
    if len(unique) < n:
        raise InputError(
            f"the id {unique[count > 1][0]} stands {count.max()} times; expected unique ids: "
            "dissolve the parts into multipolygons, or pass ids=range(1, n + 1)."
        )
    return values.astype(np.uint64)


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
