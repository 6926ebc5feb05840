"""GeoJSON as QuPath writes it: a feature a cell, written one after the other."""

from __future__ import annotations

import json
from hashlib import blake2b
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from spatialdata_segment.errors import InputError
from spatialdata_segment.formats._files import replacing
from spatialdata_segment.formats._frames import Cells

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from numpy.typing import ArrayLike, NDArray

_ROWS = 1 << 12
_TYPES = ("detection", "cell", "annotation")


def write_geojson(
    path: str | os.PathLike[str],
    polygons: gpd.GeoDataFrame | gpd.GeoSeries | ArrayLike,
    *,
    properties: pd.DataFrame | Mapping[str, Any] | None = None,
    object_type: Literal["detection", "cell", "annotation"] = "detection",
) -> None:
    """Write polygons as a GeoJSON FeatureCollection that QuPath opens; in px, without a coordinate system.

    Each feature has as ``id`` a UUID made from cell and outline (the same input gives the same bytes), and the
    properties ``objectType``, ``name`` (the id), ``cell_id``, ``measurements`` (columns of numbers, as far as they are
    finite) and the other columns by their names; of a column ``classification`` each text is the name of a class.
    Planes are those of QuPath (``plane`` of the geometry).

    Parameters
    ----------
    path
        The file, such as ``cells.geojson``; one that is there is replaced.
    polygons
        As for :func:`write_parquet`.
    properties
        A value a polygon under each name, in the order of the polygons. None: the columns of ``polygons``.
    object_type
        What QuPath makes of them: "detection" (fast with many), "cell" or "annotation" (can be edited).

    Raises
    ------
    InputError
        As for :func:`write_parquet`; properties of another length.
    """
    if object_type not in _TYPES:
        raise InputError(f"object_type={object_type!r}: expected one of {', '.join(_TYPES)}")
    cells = Cells.of(polygons).saying(properties)
    with replacing(path) as new, new.open("w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[')
        separator = "\n"
        for rows in cells.batches(_ROWS):
            file.write(separator + ",\n".join(_features(cells, rows, object_type)))
            separator = ",\n"
        file.write("\n]}\n")


def _features(cells: Cells, rows: slice, object_type: str) -> Iterator[str]:
    geometry = cells.geometry[rows]
    planes = None if cells.z is None else cells.z[rows]
    wkb = shapely.to_wkb(geometry, byte_order=1)
    said = cells.columns.iloc[rows]
    numbers = {str(n): said[n].to_numpy(float) for n in said if said[n].dtype.kind in "iuf"}
    others = {str(n): said[n].tolist() for n in said if said[n].dtype.kind not in "iuf"}
    for i, (cell, text) in enumerate(zip(cells.ids[rows].tolist(), _texts(geometry, planes), strict=True)):
        properties = {"objectType": object_type, "name": str(cell), "cell_id": cell}
        properties |= {k: _class(v[i]) if k == "classification" else v[i] for k, v in others.items()}
        measured = {k: v[i] for k, v in numbers.items() if np.isfinite(v[i])}
        if measured:
            properties["measurements"] = measured
        told = json.dumps(properties, separators=(",", ":"), default=str)
        yield f'{{"type":"Feature","id":"{_uuid(cell, wkb[i])}","geometry":{text},"properties":{told}}}'


def _class(name: object) -> dict[str, str] | None:
    return {"name": name} if isinstance(name, str) else None


def _texts(geometry: NDArray[np.object_], planes: NDArray[np.int64] | None) -> Iterator[str]:
    """Give the geometries as GeoJSON, whole numbers without their fraction."""
    for i, text in enumerate(shapely.to_geojson(geometry).tolist()):
        short = text.replace(".0,", ",").replace(".0]", "]")
        if planes is not None:
            short = f'{short[:-1]},"plane":{{"c":-1,"z":{planes[i]},"t":0}}}}'
        yield short


def _uuid(cell: int, wkb: bytes) -> UUID:
    return UUID(bytes=blake2b(wkb + cell.to_bytes(8, "little"), digest_size=16).digest(), version=4)


def read_geojson(path: str | os.PathLike[str]) -> gpd.GeoDataFrame:
    """Read the features of a GeoJSON file, or a bare list of them; QuPath's measurements and classes as columns."""
    file = Path(path)
    with file.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as text:
        is_list = text[:64].lstrip()[:1] == b"["
        frame = _parsed(bytes(text)) if is_list or text.find(b'"plane"') >= 0 else gpd.read_file(file)
    frame = gpd.GeoDataFrame(frame).set_crs(None, allow_override=True)
    if "measurements" in frame:
        measured = [_object(v) or {} for v in frame.pop("measurements")]
        frame = frame.join(pd.DataFrame(measured, index=frame.index), rsuffix=" (measured)")
    if "classification" in frame:
        classes = [_object(v) for v in frame["classification"]]
        frame["classification"] = [c.get("name") if isinstance(c, dict) else c for c in classes]
    if "cell_id" not in frame and "name" in frame:
        frame["cell_id"] = frame.pop("name")
    elif "name" in frame and (frame["name"].astype(str) == frame["cell_id"].astype(str)).all():
        del frame["name"]
    return frame.drop(columns=[c for c in ("id", "objectType", "isLocked", "color") if c in frame])


def _parsed(text: bytes) -> gpd.GeoDataFrame:
    """Read what GDAL does not: lists of features, planes."""
    found = json.loads(text)
    features = found if isinstance(found, list) else found["features"]
    shapes = [f["geometry"] for f in features]
    frame = pd.DataFrame([f.get("properties") or {} for f in features])
    planes = [((g or {}).get("plane") or {}).get("z", 0) for g in shapes]
    if any(planes):
        frame["z_index"] = np.array(planes, np.int64)
    return gpd.GeoDataFrame(
        frame, geometry=shapely.from_geojson([None if g is None else json.dumps(g) for g in shapes])
    )


def _object(value: Any) -> Any:
    """Return what a property that GDAL passes on as text holds."""
    if isinstance(value, str) and value[:1] == "{":
        return json.loads(value)
    return None if value is None or value != value else value
