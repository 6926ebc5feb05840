"""Regions of interest of ImageJ and Fiji: a ZIP file with one ROI a cell."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from roifile import ROI_OPTIONS, ROI_TYPE, ImagejRoi

from spatialdata_segment.formats._files import replacing
from spatialdata_segment.formats._frames import Cells

if TYPE_CHECKING:
    import os

    import geopandas as gpd
    from numpy.typing import ArrayLike, NDArray

_INTEGER = 32767
"""Coordinates up to here fit into the 16 bits that ROIs have for whole numbers."""
_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0


def write_imagej(path: str | os.PathLike[str], polygons: gpd.GeoDataFrame | gpd.GeoSeries | ArrayLike) -> None:
    """Write polygons as ROIs that the ROI Manager of ImageJ opens: a ``.zip``, the id of a cell as its ROI's name.

    A cell of one ring is a traced (whole coordinates) or polygonal ROI; one of several parts or with holes is a
    composite ROI of all its rings, of which ImageJ fills the even-odd area. Nothing is left out. Coordinates are
    float32, exact for whole ones up to 2**24. Planes become slices (plane 0 is slice 1).

    Parameters
    ----------
    path
        The file, such as ``rois.zip``; one that is there is replaced.
    polygons
        As for :func:`write_parquet`; further columns are not written.

    Raises
    ------
    InputError
        As for :func:`write_parquet`.
    """
    cells = Cells.of(polygons)
    with replacing(path) as new, zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, (cell, geometry) in enumerate(zip(cells.ids.tolist(), cells.geometry, strict=True)):
            plane = None if cells.z is None else int(cells.z[i])
            rings = [shapely.get_coordinates(ring)[:-1] for ring in shapely.get_rings(shapely.get_parts(geometry))]
            if not rings:
                continue
            roi = _simple(rings[0]) if len(rings) == 1 else _composite(rings)
            roi.name = str(cell)
            if plane is not None:
                roi.position = roi.z_position = plane + 1
            prefix = "" if plane is None else f"{plane + 1:04d}-"
            # of a fixed date: equal outlines are equal bytes
            archive.writestr(zipfile.ZipInfo(f"{prefix}{cell}.roi"), roi.tobytes(), zipfile.ZIP_DEFLATED)


def read_imagej(path: str | os.PathLike[str]) -> tuple[list[str], NDArray[np.object_], NDArray[np.int64]]:
    """Read the names, the areas (even-odd, None where there is none) and the slices of ROIs; a .roi or a .zip."""
    found = ImagejRoi.fromfile(path)
    rois = found if isinstance(found, list) else [found]
    areas = np.array([_area(roi) for roi in rois], dtype=object)
    slices = [roi.z_position or roi.position for roi in rois]
    return [roi.name for roi in rois], areas, np.array(slices, np.int64)


def _simple(ring: NDArray[np.float64]) -> ImagejRoi:
    is_whole = bool((ring == np.round(ring)).all())
    roi = _boxed(ring, ROI_TYPE.TRACED if is_whole else ROI_TYPE.POLYGON)
    roi.n_coordinates = len(ring)
    roi.integer_coordinates = np.round(ring - (roi.left, roi.top)).astype(np.int32)
    if not is_whole or ring.min() < 0 or ring.max() > _INTEGER:
        roi.options |= ROI_OPTIONS.SUB_PIXEL_RESOLUTION
        roi.subpixel_coordinates = ring.astype(np.float32)
    return roi


def _composite(rings: list[NDArray[np.float64]]) -> ImagejRoi:
    parts: list[NDArray[np.float64]] = []
    for ring in rings:
        steps = np.column_stack((np.full(len(ring), _LINE), ring))
        steps[0, 0] = _MOVE
        parts += [steps.ravel(), np.array([_CLOSE])]
    roi = _boxed(np.concatenate(rings), ROI_TYPE.RECT)
    roi.multi_coordinates = np.concatenate(parts).astype(np.float32)
    roi.shape_roi_size = len(roi.multi_coordinates)
    return roi


def _boxed(points: NDArray[np.float64], kind: ROI_TYPE) -> ImagejRoi:
    roi = ImagejRoi()
    roi.roitype = kind
    roi.left, roi.top = (int(v) for v in np.floor(points.min(axis=0)))
    roi.right, roi.bottom = (int(v) for v in np.ceil(points.max(axis=0)))
    return roi


_AREAS = (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED, ROI_TYPE.RECT, ROI_TYPE.OVAL)


def _area(roi: ImagejRoi) -> Any:
    if roi.roitype not in _AREAS:
        return None
    rings = [np.asarray(r, float) for r in roi.coordinates(multi=True)]
    closed = [r if (r[0] == r[-1]).all() else np.vstack((r, r[:1])) for r in rings if len(r) > 2]
    lines: list[Any] = [shapely.linestrings(r) for r in closed]
    if len(lines) == 1:
        return shapely.polygons(closed[0])
    area = shapely.build_area(shapely.geometrycollections(lines))
    return area if not shapely.is_empty(area) else None
