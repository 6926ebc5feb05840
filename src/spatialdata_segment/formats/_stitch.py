"""`stitch_folders`: planes segmented one by one, each in a folder, joined into 3D cells."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import geopandas as gpd
import numpy as np
import shapely

from spatialdata_segment._polygons import check_valid
from spatialdata_segment._stack import stitch_polygons, threads
from spatialdata_segment.core.planes import check_threshold
from spatialdata_segment.errors import InputError, is_whole
from spatialdata_segment.formats._folders import POLYGONS, folder_at, output_at, planes_in
from spatialdata_segment.formats._parquet import write_parquet
from spatialdata_segment.formats._plan import OutputPlan
from spatialdata_segment.formats._read import read_polygons

if TYPE_CHECKING:
    import os

STITCHED = "3d_polygons.parquet"
_PER_POLYGON, _PER_POINT = 1_500, 22
"""Bytes of a polygon and of each of its points, in memory and on their way into the file."""


def stitch_folders(
    folder: str | os.PathLike[str],
    *,
    iou_threshold: float = 0.5,
    num_process: int = 8,
    output_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Join the cells of consecutive planes, each segmented in a folder of its own, into 3D cells.

    The rule is that of `stitch_planes`: a cell continues the one of the plane before with which it has the highest IoU,
    if that reaches the threshold, one to one. Consecutive are the planes in the order of their ``z_index``, whatever
    numbers lie between.

    Parameters
    ----------
    folder
        Holds a folder with ``polygons.parquet`` for each plane. Its place along z, a whole number, is the ``z_index``
        in ``configs.yml`` beside the folders, where there is one; else in each folder's ``metadata.json``.
    iou_threshold
        The IoU to reach, above 0 and up to 1. 0: planes keep distinct ids.
    num_process
        How many threads intersect polygons at once (outside of Python's lock, so that no processes are needed); 0: the
        main one alone.
    output_dir
        Where to write; None: into the folder itself. It is made if need be.
    overwrite
        Whether to replace a ``3d_polygons.parquet``.

    Returns
    -------
    The path of ``3d_polygons.parquet``: GeoParquet of the polygons as they were, in the order of the planes, with the
    columns ``geometry``, ``z_index`` and ``cell_id``, the 3D cell: 1..n in order of first appearance (plane, then id).

    Raises
    ------
    MissingError
        No such folder, or none with polygons in it.
    ExistsError
        The output is there.
    InputError
        A ``z_index`` that is null, missing or repeated (names the folders), polygons that are not valid.
    """
    return ready_planes(
        folder, iou_threshold=iou_threshold, num_process=num_process, output_dir=output_dir, overwrite=overwrite
    ).write()


@dataclass(frozen=True)
class ReadyPlanes:
    """Planes that are read and checked, and where their cells go.

    Attributes
    ----------
    planes
        The folder of each plane, by its place along z, ascending.
    frames
        Their polygons.
    iou_threshold, num_process
        As `stitch_folders` takes them.
    target
        The path of ``3d_polygons.parquet``.
    """

    planes: dict[int, Path]
    frames: list[gpd.GeoDataFrame]
    iou_threshold: float
    num_process: int
    target: Path

    def plan(self) -> OutputPlan:
        """Return what `write` would do."""
        n_polygons = sum(map(len, self.frames))
        points = sum(int(shapely.get_num_coordinates(np.asarray(f.geometry, object)).sum()) for f in self.frames)
        memory = _PER_POLYGON * n_polygons + _PER_POINT * points
        return OutputPlan(None, None, n_polygons, len(self.planes), memory, 0, {str(self.target): "polygons"})

    def write(self) -> Path:
        """Join them, and return the path."""
        with _scheduler(self.num_process):
            polygons = [(np.asarray(f.geometry, object), f.index.to_numpy()) for f in self.frames]
            ids = stitch_polygons(polygons, self.iou_threshold)
        columns: dict[str, Any] = {
            "geometry": np.concatenate([shapes for shapes, _ in polygons]),
            "z_index": np.repeat(np.array([*self.planes], np.int64), [len(i) for i in ids]),
            "cell_id": np.concatenate(ids),
        }
        said = {"iou-threshold": self.iou_threshold, "planes": {path.name: z for z, path in self.planes.items()}}
        self.target.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(self.target, gpd.GeoDataFrame(columns, geometry="geometry"), metadata=said)
        return self.target


def ready_planes(
    folder: str | os.PathLike[str],
    *,
    iou_threshold: float,
    num_process: int,
    output_dir: str | os.PathLike[str] | None,
    overwrite: bool,
) -> ReadyPlanes:
    """Read and check all that `stitch_folders` needs, and write nothing; it raises what that does."""
    check_threshold(iou_threshold)
    if not is_whole(num_process) or num_process < 0:
        raise InputError(f"num_process={num_process!r}: expected how many threads to use, or 0 for the main one alone")
    source = folder_at(folder)
    target = output_at(STITCHED, source, output_dir, overwrite)
    planes = planes_in(source)
    frames = [_plane(path / POLYGONS) for path in planes.values()]
    return ReadyPlanes(planes, frames, iou_threshold, num_process, target)


def _plane(path: Path) -> gpd.GeoDataFrame:
    frame = read_polygons(path)
    if "z_index" in frame:
        raise InputError(f"{path} has planes of its own (z_index): expected the polygons of one plane")
    try:
        check_valid(np.asarray(frame.geometry, object))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return frame


def _scheduler(num_process: int) -> AbstractContextManager[Any]:
    return threads(num_process) if num_process else dask.config.set(scheduler="sync")
