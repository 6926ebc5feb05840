"""`add_labels` and `add_polygons`: cells that other programs found, as the elements that `segment` writes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import geopandas as gpd
import numpy as np
import shapely

from spatialdata_segment import _elements
from spatialdata_segment._masks import measure_objects, relabel
from spatialdata_segment._polygons import as_planes, ndim_of
from spatialdata_segment._raster import Drawing
from spatialdata_segment._request import checked_pixel_size, leftovers, output_names
from spatialdata_segment._verbs import Result, recover_and_check, write_result
from spatialdata_segment.core.matching import Fate, Resolution, Rules, resolve
from spatialdata_segment.core.measure import locate
from spatialdata_segment.errors import InputError, SegmentationWarning
from spatialdata_segment.formats._frames import Cells
from spatialdata_segment.formats._read import read_polygons
from spatialdata_segment.formats._read_labels import read_labels

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import dask.array as da
    import xarray as xr
    from numpy.typing import ArrayLike, NDArray
    from spatialdata import SpatialData

    from spatialdata_segment.core.objects import Objects


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

    Labels are read block by block, a few times; memory is that of the blocks in flight and O(objects).

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
    task = _Import.of(sdata, image_key, scale, kind, renumber, measure_channels, key_added, to_coordinate_system)
    pixels, source = _labels(sdata, labels)
    if pixels.shape != task.ref.pyramid[0]:
        raise InputError(
            f"labels {source} of shape {pixels.shape} do not lie on the grid of image {image_key!r} at {scale!r}: "
            f"expected the shape {task.ref.pyramid[0]}, or another scale="
        )
    written = _Written(pixel_size, shapes, table, overwrite, progress)
    return task.run(sdata, pixels, {"labels": source}, None, written)


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
    task = _Import.of(sdata, image_key, scale, kind, renumber, measure_channels, key_added, to_coordinate_system)
    frame, source = _polygons(sdata, polygons, task.ref, to_coordinate_system)
    try:
        cells = Cells.of(frame)
    except InputError as error:
        raise InputError(f"polygons {source}: {error}") from error
    if (cells.z is None) != (len(task.ref.pyramid[0]) == 2):
        has = "no column z_index" if cells.z is None else "a column z_index"
        raise InputError(
            f"polygons {source} have {has}, and image {image_key!r} has the shape {task.ref.pyramid[0]}: expected it "
            "for volumes alone"
        )
    cells = _repaired(cells, source)
    drawn = Drawing.of(cells.frame()).draw(task.ref.pyramid[0])
    written = _Written(pixel_size, shapes, table, overwrite, progress)
    return task.run(sdata, drawn, {"polygons": source}, cells, written)


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
        stacklevel=3,
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


@dataclass(frozen=True)
class _Written:
    """What is to be written, and how."""

    pixel_size: float | Sequence[float] | None
    shapes: bool
    table: bool
    overwrite: bool
    progress: bool


@dataclass(frozen=True)
class _Import:
    """Where cells lie, and what they become."""

    ref: _elements.ImageRef
    kind: str
    renumber: bool
    channels: tuple[int, ...]
    key_added: str
    system: str

    @classmethod
    def of(
        cls,
        sdata: SpatialData,
        image_key: str,
        scale: str,
        kind: str,
        renumber: bool,
        channels: Sequence[str | int] | str | int | None,
        key_added: str,
        system: str,
    ) -> _Import:
        """Check it."""
        if kind not in ("nucleus", "cell"):
            raise InputError(f"kind={kind!r}: expected 'nucleus' or 'cell'")
        ref = _elements.read_image(sdata, image_key, scale)
        at = _elements.resolve_channels(ref, ref.channels if channels is None else channels)
        return cls(ref, kind, renumber, at, key_added, system)

    def run(
        self, sdata: SpatialData, pixels: da.Array, source: Mapping[str, str], cells: Cells | None, to: _Written
    ) -> SpatialData:
        """Measure labels and write them; with polygons, where these were given."""
        size = checked_pixel_size(to.pixel_size, pixels.ndim)
        names = output_names(self.key_added, (self.kind,), to.shapes, to.table)
        recover_and_check(sdata, names, to.overwrite)
        objects = measure_objects(pixels)
        resolution, fate = self._keep(objects)
        result = Result(
            {self.kind: _relabelled(pixels, fate, resolution.dtype)},
            {self.kind: objects},
            resolution,
            _elements.LabelsRef(self.ref.key, self.ref.data[0], self.ref.transformations, self.ref.pyramid),
            {"imported": {**source, "image": self.ref.key, "scale": self.ref.scale, "renumber": self.renumber}},
            [name for name in leftovers(self.key_added, names) if to.overwrite],
            {},
            {} if cells is None else {self.kind: _outlines(cells, fate)},
            {} if cells is None else _names(cells, objects),
        )
        image = (self.ref.data.data[list(self.channels)], [self.ref.channels[i] for i in self.channels])
        area = None if size is None else float(np.prod(size))
        return write_result(sdata, result, image, self.key_added, self.system, area, to.shapes, to.table, to.progress)

    def _keep(self, objects: Objects) -> tuple[Resolution, Fate]:
        """Keep every object, under its own id or a new one."""
        is_cell, rules = self.kind == "cell", Rules(match_masks=False)
        found = resolve(None, objects, None, rules) if is_cell else resolve(objects, None, None, rules)
        fate = found.cell if is_cell else found.nucleus
        assert fate is not None
        if self.renumber:
            return found, fate
        kept, largest = replace(fate, final_id=fate.ids), int(fate.ids.max(initial=0))
        return (Resolution(None, kept, largest) if is_cell else Resolution(kept, None, largest)), kept


def _relabelled(pixels: da.Array, fate: Fate, dtype: np.dtype[np.unsignedinteger]) -> da.Array:
    if np.array_equal(fate.ids, fate.final_id):
        kept: da.Array = pixels.astype(dtype)
        return kept
    return relabel(pixels, *fate.mapping, dtype)


def _outlines(cells: Cells, fate: Fate) -> gpd.GeoDataFrame:
    """Return the polygons of the cells that have pixels, under their final ids."""
    at, found = locate(fate.ids, cells.ids)
    left = np.unique(cells.ids[~found])
    if len(left):
        warnings.warn(
            f"{len(left)} polygons have no pixel of their own (outside of the image, covered by others, or too small), "
            f"and are left out; the first is {left[0]}",
            SegmentationWarning,
            stacklevel=4,
        )
    rows = np.flatnonzero(found)
    final = fate.final_id[at[rows]]
    order = np.argsort(final, kind="stable") if cells.z is None else np.lexsort((final, cells.z[rows]))
    rows, final = rows[order], final[order]
    z = None if cells.z is None else cells.z[rows]
    columns = cells.columns.iloc[rows].reset_index(drop=True)
    return Cells(cells.geometry[rows], final, z, columns).frame()


def _names(cells: Cells, objects: Objects) -> dict[str, NDArray[Any]]:
    """Return the names of objects, where their polygons have any."""
    if "name" not in cells.columns:
        return {}
    ids, first = np.unique(cells.ids, return_index=True)
    return {"name": cells.columns["name"].to_numpy()[first[np.searchsorted(ids, objects.ids)]]}
