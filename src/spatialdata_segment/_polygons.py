"""Label images to polygons at any size, and polygons checked; the geometry itself is in ``core.contours``.

Knows arrays and data frames, not SpatialData: pixel coordinates in, pixel coordinates out.
"""

from __future__ import annotations

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

from spatialdata_segment.core.contours import Outlines, merge, trace
from spatialdata_segment.errors import InputError, is_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

_BLOCK = 2048
_POLYGONAL = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)


def labels_to_polygons(
    labels: NDArray[np.integer] | da.Array | xr.DataArray | xr.DataTree,
    *,
    n_jobs: int | None = None,
    progress: bool = True,
) -> gpd.GeoDataFrame:
    """Outline every object of a label image of any size, exactly.

    The image is read block by block; memory is O(polygons) plus one block a thread. The outlines run along
    the pixel edges, holes included, and are those of the whole image whatever the chunks:
    :func:`~spatialdata_segment.polygons_to_labels` gives back the labels bit for bit. Method: signed corners of
    the blocks, added up over the seams (:func:`spatialdata_segment.core.contours.merge`).

    Parameters
    ----------
    labels
        ``(y, x)`` or ``(z, y, x)``, integer, 0 = background. The axes of an :class:`xarray.DataArray` have
        these names, in any order; of a multiscale element the finest scale is taken. A dask chunk above
        2048 x 2048 is computed once and traced in pieces.
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
    planes = as_planes(labels)
    z, y, x = planes.chunks
    planes = cast("da.Array", planes.rechunk((z, grouped(y, _BLOCK), grouped(x, _BLOCK))))
    starts = [np.cumsum((0, *c[:-1])).tolist() for c in planes.chunks]
    blocks = planes.to_delayed().ravel()
    tasks = [delayed(_trace_block)(b, s) for b, s in zip(blocks, product(*starts), strict=True)]
    parts: dict[int, list[Outlines]] = {}
    for found in _compute(tasks, n_jobs, progress):
        for z, outlines in found:
            parts.setdefault(z, []).append(outlines)
    return frame_of({z: merge(p) for z, p in sorted(parts.items())}, ndim_of(labels))


def as_planes(labels: NDArray[np.integer] | da.Array | xr.DataArray | xr.DataTree) -> da.Array:
    """Return labels ``(y, x)`` or ``(z, y, x)``, of several scales the finest, as a dask array ``(z, y, x)``.

    Raises
    ------
    InputError
        Other axes, or no integers.
    """
    if isinstance(labels, xr.DataTree):
        labels = cast("xr.DataArray", next(iter(labels["scale0"].data_vars.values())))
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
        data = da.from_array(data, chunks=(*(1,) * (data.ndim - 2), _BLOCK, _BLOCK), name=False)
    planes: Any = data if data.ndim == 3 else data[None]
    if any(np.isnan(c).any() for c in planes.chunks):
        raise InputError("labels have chunks of unknown size; call .compute_chunk_sizes() on them first.")
    return cast("da.Array", planes)


def ndim_of(labels: NDArray[np.integer] | da.Array | xr.DataArray | xr.DataTree) -> int:
    """Return the number of axes of labels, of several scales of the finest."""
    return len(labels["scale0"].dims) if isinstance(labels, xr.DataTree) else labels.ndim


def check_positive(labels: NDArray[np.integer]) -> None:
    """Raise where a label is negative."""
    if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
        raise InputError(f"labels hold the id {labels.min()}; expected ids > 0 and 0 for the background: relabel them.")


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


def checked_geometries(
    polygons: gpd.GeoDataFrame | gpd.GeoSeries | ArrayLike, *, finite: bool = True
) -> tuple[NDArray[np.object_], pd.Index | None]:
    """Return the geometries, checked (their coordinates where ``finite``), and their index if they have one."""
    index = polygons.index if isinstance(polygons, gpd.GeoDataFrame | gpd.GeoSeries) else None
    values = polygons.geometry if isinstance(polygons, gpd.GeoDataFrame) else polygons
    geometries = np.asarray(values, dtype=object)
    strange = geometries[~shapely.is_geometry(geometries)]
    if geometries.ndim != 1 or len(strange):
        found = repr(strange[0]) if len(strange) else f"an array of shape {geometries.shape}"
        raise InputError(f"polygons hold {found}; expected a sequence of shapely polygons: drop what is missing.")
    wrong = np.flatnonzero(~np.isin(shapely.get_type_id(geometries), _POLYGONAL))
    if len(wrong):
        raise InputError(
            f"polygons hold a {geometries[wrong[0]].geom_type} at position {wrong[0]} ({len(wrong)} in all); "
            "expected Polygon or MultiPolygon: give points a radius with .buffer(), or drop them."
        )
    if finite:
        points, owner = shapely.get_coordinates(geometries, return_index=True)
        check_finite(owner[~np.isfinite(points).all(axis=1)])
    return geometries, index


def check_finite(endless: NDArray[np.integer]) -> None:
    """Raise where polygons, by their positions, have coordinates that are not finite."""
    if len(endless):
        raise InputError(
            f"the polygon at position {endless[0]} has coordinates that are not finite: repair or drop it."
        )


def check_valid(geometries: NDArray[np.object_]) -> None:
    """Raise where a polygon is not valid by OGC, so that its area means nothing."""
    wrong = np.flatnonzero(~shapely.is_valid(geometries))
    if len(wrong):
        why = shapely.is_valid_reason(geometries[wrong[0]])
        raise InputError(
            f"the polygon at position {wrong[0]} is not valid ({why}; {len(wrong)} in all), so that its area is not "
            "known: repair it with .buffer(0)"
        )


def checked_ids(ids: ArrayLike | None, index: pd.Index | None, n: int) -> NDArray[np.uint64]:
    """Return the ids, which must be unique and positive; None: the index, if it holds such integers, else 1..n."""
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
