"""Polygons from any file that the writers here make, and that other programs do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np

from spatialdata_segment.errors import InputError
from spatialdata_segment.formats._files import existing, unreadable
from spatialdata_segment.formats._frames import Cells

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

_PARQUET = (".parquet", ".geoparquet", ".pq")


def read_polygons(path: str | os.PathLike[str]) -> gpd.GeoDataFrame:
    """Read polygons of cells: GeoParquet, GeoJSON (QuPath's as well), or ROIs of ImageJ.

    The ids are those of a column ``cell_id`` (in GeoJSON a property, of ROIs the names) if it holds whole numbers, else
    of an index of positive integers, else 1..n in the order of the file. Where a file says of which plane a polygon is
    (a column ``z_index``; QuPath's ``plane`` or a slice of ImageJ, where one is not the first), the result has planes.

    Parameters
    ----------
    path
        ``.parquet`` (``.geoparquet``, ``.pq``), ``.geojson`` (``.json``), ``.zip`` or ``.roi``.

    Returns
    -------
    As :func:`~spatialdata_segment.labels_to_polygons` has them: the index ``cell_id`` (int64), the column ``geometry``
    (Polygon, MultiPolygon; px, ``(x, y)``); of planes the columns ``z_index``, ``cell_id``, ``geometry``.
    Further columns follow. ``attrs["spatialdata_segment"]`` holds the metadata of :func:`write_parquet`.

    Raises
    ------
    MissingError
        No such file.
    InputError
        Another format, a broken file, geometries that are missing or no polygons, ids that are negative or not unique.
    """
    file = existing(path, "file of polygons")
    read = _reader(file)
    try:
        frame = read(file)
        cells = Cells.of(frame).frame()
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except Exception as error:
        raise unreadable(file, error, _SAID) from error
    cells.attrs.update(frame.attrs)
    return cells


_SAID = "GeoParquet (.parquet), GeoJSON (.geojson) or ROIs of ImageJ (.zip, .roi)"


def is_parquet(file: Path) -> bool:
    """Tell by its suffix whether a file is one of Parquet."""
    return file.suffix.lower() in _PARQUET


def _reader(file: Path) -> Callable[[Path], gpd.GeoDataFrame]:
    suffix = file.suffix.lower()
    if is_parquet(file):
        return _parquet
    if suffix in (".geojson", ".json"):
        return _geojson
    if suffix in (".zip", ".roi"):
        return _imagej
    raise InputError(f"{file}: polygons are read from {_SAID}; the suffix {suffix!r} is none of them")


def _parquet(file: Path) -> gpd.GeoDataFrame:
    from spatialdata_segment.formats._parquet import read_parquet

    return read_parquet(file)


def _geojson(file: Path) -> gpd.GeoDataFrame:
    from spatialdata_segment.formats._geojson import read_geojson

    return read_geojson(file)


def _imagej(file: Path) -> gpd.GeoDataFrame:
    from spatialdata_segment.formats._imagej import read_imagej

    names, areas, slices = read_imagej(file)
    missing = [name for name, area in zip(names, areas, strict=True) if area is None]
    if missing:
        raise InputError(f"the ROI {missing[0]!r} ({len(missing)} in all) encloses no area: remove points and lines")
    frame = gpd.GeoDataFrame({"geometry": areas, "cell_id": names, "z_index": np.maximum(slices, 1) - 1})
    return frame if (slices > 1).any() else frame.drop(columns="z_index")
