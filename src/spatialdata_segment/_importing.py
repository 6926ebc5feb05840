"""Cells that other programs found, open and checked: what their import would take, and how they become elements."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import dask.array as da
import geopandas as gpd
import numpy as np

from spatialdata_segment import _elements
from spatialdata_segment._masks import measure_objects, relabel
from spatialdata_segment._request import checked_pixel_size, leftovers, output_names
from spatialdata_segment._staging import Staging
from spatialdata_segment._write import CHUNK
from spatialdata_segment._write_masks import Result, Wanted, WideError, as_ids, matrix_of, stage_result, staged, store
from spatialdata_segment.core.matching import Fate, Resolution, Rules, resolve
from spatialdata_segment.core.measure import locate
from spatialdata_segment.engine.executor import cores
from spatialdata_segment.errors import InputError, SegmentationWarning
from spatialdata_segment.formats._plan import OutputPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    import zarr
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from spatialdata_segment.core.objects import Objects
    from spatialdata_segment.formats._frames import Cells

_TRACED, _GIVEN = 6_000, 3_000
"""Bytes of a cell in outlines and tables, where its outline is traced, and where it is given (but for its points)."""


@dataclass(frozen=True)
class Options:
    """What `add_labels` and `add_polygons` are given besides, by the same names."""

    scale: str
    kind: str
    renumber: bool
    measure_channels: Sequence[str | int] | str | int | None
    key_added: str
    to_coordinate_system: str
    pixel_size: float | Sequence[float] | None
    shapes: bool
    table: bool
    overwrite: bool
    progress: bool


@dataclass(frozen=True)
class Grid:
    """Where cells go, checked.

    Attributes
    ----------
    image
        On whose grid they lie.
    like
        The same grid, as that of labels.
    wanted
        What is written.
    names
        Of the elements, and their kinds.
    """

    image: _elements.ImageRef
    like: _elements.LabelsRef
    wanted: Wanted
    names: dict[str, str]

    @classmethod
    def of(cls, sdata: SpatialData, image_key: str, options: Options) -> Grid:
        """Check all that does not depend on the cells."""
        if options.kind not in ("nucleus", "cell"):
            raise InputError(f"kind={options.kind!r}: expected 'nucleus' or 'cell'")
        ref = _elements.read_image(sdata, image_key, options.scale)
        at = _elements.resolve_channels(
            ref, ref.channels if options.measure_channels is None else options.measure_channels
        )
        like = _elements.LabelsRef(ref.key, ref.data[0], ref.transformations, ref.pyramid)
        matrix_of(like, options.to_coordinate_system)
        size = checked_pixel_size(options.pixel_size, like.data.ndim)
        wanted = Wanted(
            options.key_added,
            options.to_coordinate_system,
            (ref.data.data[list(at)], [ref.channels[i] for i in at]),
            None if size is None else float(prod(size)),
            options.shapes,
            options.table,
            options.progress,
        )
        names = output_names(options.key_added, (options.kind,), options.shapes, options.table)
        _elements.check_outputs(sdata, names, options.overwrite)
        return cls(ref, like, wanted, names)


@dataclass(frozen=True)
class Ready:
    """Cells that are open and checked.

    Attributes
    ----------
    sdata, options
        As they were given.
    grid
        Where they go.
    source
        "labels" or "polygons", and where they come from.
    pixels
        Their labels, lazy.
    cells
        The polygons, where these were given.
    held
        Bytes of the polygons, but for what each cell takes.
    """

    sdata: SpatialData
    grid: Grid
    options: Options
    source: dict[str, str]
    pixels: da.Array
    cells: Cells | None
    held: int

    def plan(self) -> OutputPlan:
        """Return what `run` would do."""
        shape, (image, _) = self.pixels.shape, self.grid.wanted.image or (None, ())
        written = prod(min(CHUNK[len(shape)], n) for n in shape)
        block = max(self.pixels.itemsize * int(prod(self.pixels.chunksize)), 8 * written)
        if image is not None and self.options.table:
            block += image.itemsize * max(int(prod(image.chunksize)), image.shape[0] * written)
        known = 0 if self.cells is None else len(self.cells)
        if self.cells is None:
            kind = "uint32" if self.pixels.itemsize <= 4 or self.options.renumber else "uint32 or uint64"
        else:
            kind = "uint32" if self.options.renumber else str(self.pixels.dtype)
        return OutputPlan(
            shape,
            kind,
            None if self.cells is None else known,
            None,
            self.held + _GIVEN * known + 2 * cores() * block,
            _TRACED if self.cells is None else 0,
            self.grid.names,
        )

    def run(self) -> SpatialData:
        """Write the labels, which are read once, and measure what is written; with polygons, where these were given."""
        kind, like, wanted = self.options.kind, self.grid.like, self.grid.wanted
        name = f"{wanted.key_added}_{kind}_labels"
        with Staging(self.sdata) as staging:
            array = self._put_down(staging, name)
            objects = measure_objects(da.from_zarr(array))
            resolution, fate = self._keep(objects)
            if not np.array_equal(fate.ids, fate.final_id):
                array = self._renumbered(staging, name, array, fate, resolution.dtype)
            said = {"image": self.grid.image.key, "scale": self.grid.image.scale, "renumber": self.options.renumber}
            result = Result(
                {kind: objects},
                resolution,
                like,
                {"imported": {**self.source, **said}},
                [n for n in leftovers(wanted.key_added, self.grid.names) if self.options.overwrite],
                {},
                {} if self.cells is None else {kind: _outlines(self.cells, fate)},
                {} if self.cells is None else _names(self.cells, objects),
            )
            stage_result(staging, {kind: array}, result, wanted)
            staging.commit()
        return self.sdata

    def _put_down(self, staging: Staging, name: str) -> zarr.Array[Any]:
        """Stage the labels as they are, as uint32; as uint64, and read again, where an id turns out to need it."""
        array = staged(staging, name, self.grid.like, np.dtype(np.uint32))
        try:
            store(as_ids(self.pixels, array.dtype), array)
        except WideError:
            staging.drop_labels(name)
            array = staged(staging, name, self.grid.like, np.dtype(np.uint64))
            store(as_ids(self.pixels, array.dtype), array)
        return array

    def _renumbered(
        self, staging: Staging, name: str, array: zarr.Array[Any], fate: Fate, dtype: np.dtype[Any]
    ) -> zarr.Array[Any]:
        """Give the staged labels their final ids, in place; read again, where these need fewer bits."""
        source = da.from_zarr(array)
        if array.dtype != dtype:
            staging.drop_labels(name)
            array, source = staged(staging, name, self.grid.like, dtype), self.pixels
        store(relabel(source, *fate.mapping, dtype), array)
        return array

    def _keep(self, objects: Objects) -> tuple[Resolution, Fate]:
        """Keep every object, under its own id or a new one."""
        is_cell, rules = self.options.kind == "cell", Rules(match_masks=False)
        found = resolve(None, objects, None, rules) if is_cell else resolve(objects, None, None, rules)
        fate = found.cell if is_cell else found.nucleus
        assert fate is not None
        if self.options.renumber:
            return found, fate
        kept, largest = replace(fate, final_id=fate.ids), int(fate.ids.max(initial=0))
        return (Resolution(None, kept, largest) if is_cell else Resolution(kept, None, largest)), kept


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
    return replace(cells, geometry=cells.geometry[rows], ids=final, z=z, columns=columns).frame()


def _names(cells: Cells, objects: Objects) -> dict[str, NDArray[Any]]:
    """Return the names of objects, where their polygons have any."""
    if "name" not in cells.columns:
        return {}
    ids, first = np.unique(cells.ids, return_index=True)
    return {"name": cells.columns["name"].to_numpy()[first[np.searchsorted(ids, objects.ids)]]}
