"""`add_labels` and `add_polygons`: cells that other programs found, as the elements that `segment` writes."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import geopandas as gpd
import numpy as np
import shapely

from spatialdata_segment import _elements
from spatialdata_segment._importing import Grid, Options, Ready
from spatialdata_segment._polygons import as_planes, ndim_of
from spatialdata_segment._raster import Drawing
from spatialdata_segment._verbs import recover_store
from spatialdata_segment.errors import InputError, SegmentationWarning
from spatialdata_segment.formats._frames import Cells
from spatialdata_segment.formats._read import read_polygons
from spatialdata_segment.formats._read_labels import read_labels

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import dask.array as da
    import xarray as xr
    from numpy.typing import ArrayLike, NDArray
    from spatialdata import SpatialData

_PER_POINT = 32
"""Bytes of a point of an outline."""


def add_labels(
    sdata: SpatialData,
    labels: NDArray[np.integer] | da.Array | xr.DataArray | xr.DataTree | str | os.PathLike[str],
    image_key: str,
    *,
    scale: str = "scale0",
    kind: Literal["nucleus", "cell"] = "cell",
    renumber: bool = False,
    measure_channels: Sequence[str | int] | str | int | None = None,
    key_added: str = "segmentation",
    to_coordinate_system: str = "global",
    pixel_size: float | Sequence[float] | None = None,
    shapes: bool = True,
    table: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> SpatialData:
    """Add a label image of any program to an object, with the outlines and tables that `segment` would write.

    Labels are read once, block by block (ids beyond 32 bits: twice), and what is measured is read from what is written;
    memory is that of the blocks in flight and O(objects).

    Parameters
    ----------
    sdata
        The object; it is changed and returned.
    labels
        ``([z], y, x)`` integers, 0 is background: an array, a labels element of the object by its name, or a file that
        :func:`~spatialdata_segment.formats.read_labels` opens.
    image_key
        The image on whose grid they lie: it gives coordinate systems, pyramid and intensities.
    scale
        The scale of the image on whose grid they lie.
    kind
        Under which name the mask is written: "nucleus" or "cell".
    renumber
        Whether the ids become 1..N, in raster order of the objects; else they are kept.
    measure_channels
        Channels whose mean intensities go into the table. None: all.
    key_added, to_coordinate_system, pixel_size, shapes, table, overwrite, progress
        As for `segment`.

    Returns
    -------
    ``sdata`` with the elements that `segment` writes for one mask.

    Raises
    ------
    MissingError, ExistsError, InputError
        Before anything is written, but for pixels that are no labels.
    """
    options = Options(
        scale=scale,
        kind=kind,
        renumber=renumber,
        measure_channels=measure_channels,
        key_added=key_added,
        to_coordinate_system=to_coordinate_system,
        pixel_size=pixel_size,
        shapes=shapes,
        table=table,
        overwrite=overwrite,
        progress=progress,
    )
    recover_store(sdata)
    return ready_labels(sdata, labels, image_key, options).run()


def add_polygons(
    sdata: SpatialData,
    polygons: gpd.GeoDataFrame | gpd.GeoSeries | ArrayLike | str | os.PathLike[str],
    image_key: str,
    *,
    scale: str = "scale0",
    kind: Literal["nucleus", "cell"] = "cell",
    renumber: bool = False,
    measure_channels: Sequence[str | int] | str | int | None = None,
    key_added: str = "segmentation",
    to_coordinate_system: str = "global",
    pixel_size: float | Sequence[float] | None = None,
    shapes: bool = True,
    table: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> SpatialData:
    """Add polygons of any program to an object, with the labels and tables that `segment` would write.

    The labels are the polygons drawn (a pixel belongs to the first that holds its centre), and areas and intensities
    are those of the labels. The shapes are the polygons as they are, with their columns. A polygon without a pixel of
    its own (outside of the image, covered by others, too small) is left out, with a warning.

    Parameters
    ----------
    sdata
        The object; it is changed and returned.
    polygons
        Polygons and multipolygons in px of the image at ``scale``, ``(x, y)``, pixel centres at +0.5, of a volume with
        a column ``z_index``; or a file of them that :func:`~spatialdata_segment.formats.read_polygons` reads; or a
        shapes element of the object by its name, brought onto the grid through ``to_coordinate_system`` (circles too).
        Ids are those of a column ``cell_id`` of whole numbers, else of an index of positive integers, else 1..n; ids
        that are text become the column ``name`` of table and shapes.
    image_key, scale, kind, renumber, measure_channels
        As for `add_labels`.
    key_added, to_coordinate_system, pixel_size, shapes, table, overwrite, progress
        As for `segment`.

    Returns
    -------
    ``sdata`` with the elements that `segment` writes for one mask.

    Raises
    ------
    MissingError, ExistsError, InputError
        Before anything is written.
    """
    options = Options(
        scale=scale,
        kind=kind,
        renumber=renumber,
        measure_channels=measure_channels,
        key_added=key_added,
        to_coordinate_system=to_coordinate_system,
        pixel_size=pixel_size,
        shapes=shapes,
        table=table,
        overwrite=overwrite,
        progress=progress,
    )
    recover_store(sdata)
    return ready_polygons(sdata, polygons, image_key, options).run()


def ready_labels(sdata: SpatialData, labels: Any, image_key: str, options: Options) -> Ready:
    """Open and check all that `add_labels` needs, and write nothing; it raises what that does."""
    grid = Grid.of(sdata, image_key, options)
    pixels, source = _labels(sdata, labels)
    shape = grid.image.pyramid[0]
    if pixels.shape != shape:
        raise InputError(
            f"labels {source} of shape {pixels.shape} do not lie on the grid of image {image_key!r} at "
            f"{options.scale!r}: expected the shape {shape}, or another scale="
        )
    return Ready(sdata, grid, options, {"labels": source}, pixels, None, 0)


def ready_polygons(sdata: SpatialData, polygons: Any, image_key: str, options: Options) -> Ready:
    """Read and check all that `add_polygons` needs, and write nothing; it raises what that does."""
    grid = Grid.of(sdata, image_key, options)
    frame, source = _polygons(sdata, polygons, grid.image, options.to_coordinate_system)
    try:
        cells = Cells.of(frame)
    except InputError as error:
        raise InputError(f"polygons {source}: {error}") from error
    shape = grid.image.pyramid[0]
    if (cells.z is None) != (len(shape) == 2):
        has = "no column z_index" if cells.z is None else "a column z_index"
        raise InputError(
            f"polygons {source} have {has}, and image {image_key!r} has the shape {shape}: expected it for volumes "
            "alone"
        )
    cells = _repaired(cells, source)
    drawing = Drawing.of(cells.frame())
    points = int(shapely.get_num_coordinates(cells.geometry).sum())
    held = drawing.nbytes + _PER_POINT * points
    return Ready(sdata, grid, options, {"polygons": source}, drawing.draw(shape), cells, held)


def _repaired(cells: Cells, source: str) -> Cells:
    """Make outlines that cross themselves valid, with a warning; lines that this leaves are no part of them."""
    wrong = np.flatnonzero(~shapely.is_valid(cells.geometry))
    if not len(wrong):
        return cells
    geometry = cells.geometry.copy()
    geometry[wrong] = shapely.buffer(shapely.make_valid(geometry[wrong]), 0)
    warnings.warn(
        f"{len(wrong)} polygons of {source} crossed themselves and were repaired, such as id {cells.ids[wrong[0]]}",
        SegmentationWarning,
        stacklevel=4,
    )
    return replace(cells, geometry=geometry)


def _labels(sdata: SpatialData, labels: Any) -> tuple[da.Array, str]:
    """Return labels, lazily, and where they come from."""
    data: Any
    if isinstance(labels, str) and labels in sdata.labels:
        data, source = _elements.read_labels(sdata, labels).data, repr(labels)
    elif isinstance(labels, str | Path):
        data, source = read_labels(labels), str(labels)
    else:
        data, source = labels, type(labels).__name__
    planes = as_planes(data)
    return (planes if ndim_of(data) == 3 else planes[0]), source


def _polygons(sdata: SpatialData, polygons: Any, ref: _elements.ImageRef, system: str) -> tuple[Any, str]:
    """Return polygons in px of the image, and where they come from."""
    if isinstance(polygons, str) and polygons in sdata.shapes:
        given = _elements.read_shapes(sdata, polygons).data
        moved = np.asarray(_elements.roi_geometry(sdata, polygons, ref, system), object)
        return gpd.GeoDataFrame(given.drop(columns=given.geometry.name), geometry=moved), repr(polygons)
    if isinstance(polygons, str | Path):
        return read_polygons(polygons), str(polygons)
    return polygons, type(polygons).__name__
