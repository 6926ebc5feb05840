"""What every format has in common: polygons with ids, and with planes where they are of a volume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd

from spatialdata_segment._polygons import checked_geometries
from spatialdata_segment._raster import planes_of, unique_ids
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import ArrayLike, NDArray

RESERVED = ("geometry", "cell_id", "z_index")


@dataclass(frozen=True)
class Cells:
    """Outlines, checked.

    Attributes
    ----------
    geometry
        ``(n,)`` object: Polygons and MultiPolygons, px, ``(x, y)``.
    ids
        ``(n,)`` int64, > 0, unique (of a volume: in each plane).
    z
        ``(n,)`` int64, the planes; None for a single one.
    columns
        What is said of each besides.
    """

    geometry: NDArray[np.object_]
    ids: NDArray[np.int64]
    z: NDArray[np.int64] | None
    columns: pd.DataFrame

    @classmethod
    def of(cls, polygons: gpd.GeoDataFrame | gpd.GeoSeries | ArrayLike) -> Cells:
        """Check polygons as `labels_to_polygons` returns them, or any sequence of them.

        Ids are those of a column ``cell_id`` of whole numbers, else of an index of positive integers, else 1..n. What
        else ``cell_id`` or the index holds becomes the column ``name``.

        Raises
        ------
        InputError
            Something that is no polygon, an id that is not positive or not unique.
        """
        geometry, index = checked_geometries(polygons)
        frame = polygons if isinstance(polygons, gpd.GeoDataFrame) else pd.DataFrame(index=range(len(geometry)))
        frame = _numbered(frame)
        z = planes_of(frame["z_index"].to_numpy()) if "z_index" in frame else None
        given = frame["cell_id"].to_numpy() if "cell_id" in frame else None
        ids = unique_ids(given, index, len(geometry), z).astype(np.int64)
        if len(ids) and ids.min() < 0:
            raise InputError(f"polygons have the id {ids.astype(np.uint64).max()}: expected ids below 2**63")
        hidden = [*RESERVED, getattr(getattr(polygons, "geometry", None), "name", None)]
        rest = frame[[name for name in frame.columns if name not in hidden]]
        return cls(geometry, ids, z, pd.DataFrame(rest).reset_index(drop=True))

    def __len__(self) -> int:
        return len(self.ids)

    def saying(self, columns: pd.DataFrame | Mapping[str, Any] | None) -> Cells:
        """Return the same with other columns; None: with its own."""
        if columns is None:
            return self
        given = {str(name): np.asarray(values) for name, values in columns.items()}
        for name, values in given.items():
            if values.shape != (len(self),):
                raise InputError(f"{name!r} has the shape {values.shape}: expected a value a polygon, {len(self)}")
        return Cells(self.geometry, self.ids, self.z, pd.DataFrame(given))

    def frame(self) -> gpd.GeoDataFrame:
        """Return the frame that `labels_to_polygons` would, with the columns behind."""
        rest = {str(name): self.columns[name].array for name in self.columns}
        if self.z is None:
            index = pd.Index(self.ids, name="cell_id")
            return gpd.GeoDataFrame({"geometry": self.geometry, **rest}, index=index, geometry="geometry")
        columns = {"z_index": self.z, "cell_id": self.ids, "geometry": self.geometry, **rest}
        return gpd.GeoDataFrame(columns, geometry="geometry")

    def batches(self, size: int) -> Iterator[slice]:
        """Give the rows in groups."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))


def _numbered(frame: pd.DataFrame) -> pd.DataFrame:
    """Make whole numbers of a column ``cell_id`` that holds them as text; other ids become the column ``name``."""
    if "cell_id" not in frame:
        return frame.assign(name=frame.index.to_numpy()) if frame.index.dtype.kind == "O" else frame
    given = frame["cell_id"]
    if given.dtype.kind in "iu":
        return frame
    numbers = pd.to_numeric(given, errors="coerce")
    if given.isna().any() and numbers.notna().any():
        raise InputError(
            f"{int(given.isna().sum())} of {len(given)} polygons have no cell_id, and others have: give each one, or "
            "leave the column out to have them numbered"
        )
    if numbers.notna().all() and (numbers == np.floor(numbers)).all():
        return frame.assign(cell_id=numbers.astype(np.int64))
    return frame.rename(columns={"cell_id": "name"})
