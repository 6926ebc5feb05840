"""Files that segmentations are exchanged as: outlines, label images, and what other programs wrote.

A writer puts its file in place when it is complete; one that fails leaves nothing behind.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spatialdata_segment.formats._cellpose import write_seg_npy
    from spatialdata_segment.formats._geojson import write_geojson
    from spatialdata_segment.formats._imagej import write_imagej
    from spatialdata_segment.formats._parquet import write_parquet
    from spatialdata_segment.formats._poly2mask import poly2mask
    from spatialdata_segment.formats._read import read_polygons
    from spatialdata_segment.formats._read_labels import read_labels
    from spatialdata_segment.formats._stitch import stitch_folders
    from spatialdata_segment.formats._tiff import write_label_tiff

__all__ = [
    "poly2mask",
    "read_labels",
    "read_polygons",
    "stitch_folders",
    "write_geojson",
    "write_imagej",
    "write_label_tiff",
    "write_parquet",
    "write_seg_npy",
]

_HOME = {
    "poly2mask": "_poly2mask",
    "read_labels": "_read_labels",
    "read_polygons": "_read",
    "stitch_folders": "_stitch",
    "write_geojson": "_geojson",
    "write_imagej": "_imagej",
    "write_label_tiff": "_tiff",
    "write_parquet": "_parquet",
    "write_seg_npy": "_cellpose",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
