"""GeoParquet: written in groups of rows, so that no copy of all outlines is in memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from spatialdata_segment.errors import InputError
from spatialdata_segment.formats._files import replacing
from spatialdata_segment.formats._frames import Cells

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import ArrayLike

METADATA_KEY = "spatialdata_segment"
_ROWS = 1 << 16


def write_parquet(
    path: str | os.PathLike[str],
    polygons: gpd.GeoDataFrame | gpd.GeoSeries | ArrayLike,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write polygons as GeoParquet 1.0, which geopandas, GDAL, DuckDB and QGIS read.

    Parameters
    ----------
    path
        The file, such as ``polygons.parquet``; one that is there is replaced.
    polygons
        As `labels_to_polygons` returns them, further columns included: Polygons and MultiPolygons, px, ``(x, y)``,
        ids in the column ``cell_id``, else in an index of positive integers, else 1..n. There is no coordinate
        reference system.
    metadata
        What can be JSON, kept in the file under the key ``spatialdata_segment``; :func:`read_polygons` returns it as
        ``frame.attrs["spatialdata_segment"]``.

    Raises
    ------
    InputError
        Something that is no polygon, ids that are not positive or not unique, metadata that JSON does not hold.
    """
    cells = Cells.of(polygons)
    frame = cells.frame()
    plain = pd.DataFrame(frame.drop(columns="geometry"))
    found = pa.Schema.from_pandas(plain, preserve_index=cells.z is None)
    names = [*frame.columns, *(["cell_id"] if cells.z is None else [])]
    fields = [pa.field("geometry", pa.binary()) if n == "geometry" else found.field(n) for n in names]
    schema = pa.schema(fields, {**found.metadata, b"geo": _geo(cells), **_extra(metadata)})
    with replacing(path) as new, pq.ParquetWriter(new, schema, compression="zstd") as writer:
        for rows in cells.batches(_ROWS):
            part = plain.iloc[rows].assign(geometry=shapely.to_wkb(cells.geometry[rows], byte_order=1))
            writer.write_table(pa.Table.from_pandas(part, schema=schema))


def read_parquet(path: str | os.PathLike[str]) -> gpd.GeoDataFrame:
    """Read GeoParquet, or Parquet with WKB in a column ``geometry``; all columns as they are."""
    schema = pq.read_schema(path)
    said = schema.metadata or {}
    if b"geo" in said:
        frame = gpd.read_parquet(path)
    elif "geometry" in schema.names:
        table = pq.read_table(path).to_pandas()
        frame = gpd.GeoDataFrame(table.assign(geometry=shapely.from_wkb(table["geometry"].to_numpy(object))))
    else:
        raise InputError(f"its columns are {schema.names}: expected one named 'geometry', or GeoParquet")
    if METADATA_KEY.encode() in said:
        frame.attrs[METADATA_KEY] = json.loads(said[METADATA_KEY.encode()])
    return frame


def _geo(cells: Cells) -> bytes:
    types = {shapely.GeometryType(t).name for t in np.unique(shapely.get_type_id(cells.geometry))}
    names = {"POLYGON": "Polygon", "MULTIPOLYGON": "MultiPolygon"}
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": sorted(names[t] for t in types), "crs": None}
    if not shapely.is_empty(cells.geometry).all():
        column["bbox"] = shapely.total_bounds(cells.geometry).tolist()
    return json.dumps({"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": column}}).encode()


def _extra(metadata: Mapping[str, Any] | None) -> dict[bytes, bytes]:
    if metadata is None:
        return {}
    try:
        return {METADATA_KEY.encode(): json.dumps(dict(metadata), sort_keys=True).encode()}
    except (TypeError, ValueError) as error:
        raise InputError(f"metadata={metadata!r}: {error}; expected what JSON can hold") from error
