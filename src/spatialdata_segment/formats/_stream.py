"""Polygons of a file in batches, so that the geometries of a large one are never all in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import shapely

from spatialdata_segment._polygons import checked_geometries
from spatialdata_segment._raster import planes_of
from spatialdata_segment.errors import InputError
from spatialdata_segment.formats._files import existing
from spatialdata_segment.formats._frames import Cells
from spatialdata_segment.formats._read import is_parquet, read_polygons

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_ROWS = 1 << 14


@dataclass(frozen=True)
class Batch:
    """Some polygons of a file: geometries, ids, and planes where the file tells them."""

    geometry: NDArray[np.object_]
    ids: NDArray[Any]
    z: NDArray[np.int64] | None


def batches(path: str | os.PathLike[str]) -> Iterator[Batch]:
    """Give the polygons of a file, checked, but for ids and coordinates. See `read_polygons`."""
    file = existing(path, "file of polygons")
    if not is_parquet(file) or not _is_plain(file):
        cells = Cells.of(read_polygons(file))
        yield Batch(cells.geometry, cells.ids, cells.z)
        return
    with pq.ParquetFile(file) as parquet:
        names = [n for n in ("geometry", "cell_id", "z_index") if n in parquet.schema_arrow.names]
        start = 0
        for part in parquet.iter_batches(_ROWS, columns=names):
            yield _batch(part, file, start)
            start += part.num_rows


def _is_plain(file: Path) -> bool:
    """Tell whether a Parquet file has WKB in the column ``geometry``, and ids that are numbers."""
    try:
        schema = pq.read_schema(file)
    except (OSError, ValueError):  # what is wrong with it, `read_polygons` says
        return False
    kinds = dict(zip(schema.names, map(str, schema.types), strict=True))
    return (
        kinds.get("geometry") in ("binary", "large_binary")
        and "int" in kinds.get("cell_id", "none")
        and "int" in kinds.get("z_index", "int")
    )


def _batch(part: Any, file: Path, start: int) -> Batch:
    try:
        shapes = shapely.from_wkb(part.column("geometry").to_numpy(zero_copy_only=False))
        geometry, _ = checked_geometries(shapes, finite=False)
        z = planes_of(part.column("z_index").to_numpy(zero_copy_only=False)) if "z_index" in part.schema.names else None
        return Batch(geometry, part.column("cell_id").to_numpy(zero_copy_only=False), z)
    except (InputError, shapely.errors.ShapelyError) as error:
        raise InputError(f"{file}, rows {start} to {start + part.num_rows}: {error}") from error
