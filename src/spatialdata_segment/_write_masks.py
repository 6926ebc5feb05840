"""Whole masks that were decided upon, as elements: labels, outlines, tables. The end of `_verbs` and `_import`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from spatialdata_segment import _elements
from spatialdata_segment._masks import measure_intensities
from spatialdata_segment._polygons import check_positive, labels_to_polygons
from spatialdata_segment._staging import Staging
from spatialdata_segment._table import candidates_table, cells_table
from spatialdata_segment._write import CHUNK, warn_if_empty
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import geopandas as gpd
    import zarr
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from spatialdata_segment.core.matching import Fate, Resolution
    from spatialdata_segment.core.objects import Objects


@dataclass(frozen=True)
class Result:
    """Candidates of masks and what became of them, what goes along into the tables, what they replace, their sources.

    ``outlines``: those that there are already, by mask. ``extra``: columns of the table, of all candidates.
    """

    objects: dict[str, Objects]
    resolution: Resolution
    like: _elements.LabelsRef
    parameters: dict[str, Any]
    stale: list[str]
    sources: dict[str, str]
    outlines: Mapping[str, gpd.GeoDataFrame] = field(default_factory=dict)
    extra: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def fate(self, mask: str) -> Fate:
        """Return what became of the candidates of a mask."""
        fate = self.resolution.nucleus if mask == "nucleus" else self.resolution.cell
        assert fate is not None
        return fate


@dataclass(frozen=True)
class Wanted:
    """What is to be written of masks, and where.

    Attributes
    ----------
    key_added
        Prefix of the names.
    system
        Coordinate system of the centroids in the tables.
    image
        Pixels to measure ``(c, [z], y, x)``, and the names of the channels.
    pixel_area
        µm² (µm³), where it is known.
    shapes, table, progress
        As `segment` takes them.
    """

    key_added: str
    system: str
    image: tuple[da.Array, list[str]] | None
    pixel_area: float | None
    shapes: bool
    table: bool
    progress: bool


def matrix_of(like: _elements.LabelsRef, system: str) -> NDArray[np.float64]:
    """Return the matrix from pixels to a coordinate system; an error where there is none of that name."""
    if system not in like.transformations:
        known = ", ".join(sorted(like.transformations))
        raise InputError(f"{like.key!r} has no coordinate system {system!r}: expected one of {known}")
    return _elements.pixel_matrix(like.transformations[system], like.data.ndim)


def write_result(sdata: SpatialData, labels: Mapping[str, da.Array], result: Result, wanted: Wanted) -> SpatialData:
    """Write the relabelled masks, each read once, and what belongs to them."""
    matrix_of(result.like, wanted.system)
    with Staging(sdata) as staging:
        arrays = {}
        for mask, lazy in labels.items():
            name = f"{wanted.key_added}_{mask}_labels"
            arrays[mask] = staged(staging, name, result.like, result.resolution.dtype)
            store(lazy, arrays[mask])
        stage_result(staging, arrays, result, wanted)
        staging.commit()
    return sdata


def staged(staging: Staging, name: str, like: _elements.LabelsRef, dtype: np.dtype[Any]) -> zarr.Array[Any]:
    """Stage labels on the grid of others, to be filled."""
    shape = like.data.shape
    chunks = tuple(min(CHUNK[len(shape)], n) for n in shape)
    return staging.labels(
        name, shape=shape, dtype=dtype, transformations=like.transformations, pyramid=like.pyramid, chunks=chunks
    )


def store(labels: da.Array, array: zarr.Array[Any]) -> None:
    """Write labels into an array of their shape, chunk by chunk; they may be read from it."""
    da.store([labels.rechunk(array.chunks)], [array], lock=False)  # type: ignore[list-item]


class WideError(Exception):
    """An id that the type of the labels does not hold."""


def as_ids(labels: da.Array, dtype: np.dtype[Any]) -> da.Array:
    """Return, lazily, labels as unsigned numbers.

    Computed, a negative id is an `InputError`, and one beyond the type a `WideError`.
    """
    kind = np.dtype(dtype)
    unsigned: da.Array = da.map_blocks(_as_ids, labels, kind, dtype=kind, meta=np.zeros((0,) * labels.ndim, kind))
    return unsigned


def _as_ids(block: NDArray[np.integer], kind: np.dtype[Any]) -> NDArray[np.unsignedinteger]:
    check_positive(block)
    if block.dtype.itemsize > kind.itemsize and block.max(initial=0) > np.iinfo(kind).max:
        raise WideError
    return block.astype(kind, copy=False)


def stage_result(staging: Staging, arrays: Mapping[str, zarr.Array[Any]], result: Result, wanted: Wanted) -> None:
    """Stage pyramids, outlines and tables of masks whose finest level is written; what is measured is read there."""
    like, key_added = result.like, wanted.key_added
    main = "cell" if "cell" in arrays else "nucleus"
    for mask, array in arrays.items():
        staging.finish_labels(f"{key_added}_{mask}_labels")
        if wanted.shapes:
            given = result.outlines.get(mask)
            frame = labels_to_polygons(da.from_zarr(array), progress=wanted.progress) if given is None else given
            if len(frame):
                staging.shapes(f"{key_added}_{mask}_boundaries", frame, like.transformations)
            else:
                staging.remove([f"{key_added}_{mask}_boundaries"])
    if wanted.table:
        _stage_tables(staging, da.from_zarr(arrays[main]), main, result, wanted)
    staging.remove(result.stale)
    warn_if_empty(like.key, result.fate(main), sum(len(o) for o in result.objects.values()))


def _stage_tables(staging: Staging, labels: da.Array, main: str, result: Result, wanted: Wanted) -> None:
    key_added, image = wanted.key_added, wanted.image
    fate, matrix = result.fate(main), matrix_of(result.like, wanted.system)
    cells = cells_table(
        result.objects[main],
        fate,
        region=f"{key_added}_{main}_labels",
        channels=image[1] if image is not None else (),
        intensities=None if image is None else measure_intensities(labels, image[0]).mean(fate.final_id),
        affine=matrix,
        pixel_area=wanted.pixel_area,
        two_masks=len(result.objects) == 2,
        extra=result.extra,
        metadata=result.parameters,
    )
    staging.table(f"{key_added}_table", cells)
    both = {m: (o, result.fate(m)) for m, o in result.objects.items()}
    sources = set(result.sources.values())
    remain = len(sources) == len(both) and sources.isdisjoint(f"{key_added}_{m}_labels" for m in both)
    candidates = candidates_table(
        both.get("nucleus"), both.get("cell"), regions=result.sources if remain else None, affine=matrix
    )
    staging.table(f"{key_added}_candidates", candidates)
