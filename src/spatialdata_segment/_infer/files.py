"""The files of one image's result, but for its metadata and its store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd

from spatialdata_segment import _elements, formats
from spatialdata_segment._infer.outputs import FILES, NUCLEI, seg_npy
from spatialdata_segment.formats._folders import POLYGONS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from xarray import DataArray

_BRIEF = "image-shape", "image-path", "model-type", "z_index", "pixel-size", "version"
"""What the files of outlines say of the run."""


@dataclass(frozen=True)
class Found:
    """What `segment` wrote, as far as it goes into files.

    Attributes
    ----------
    cells
        Outlines of the cells, or of the nuclei where there are none; px, the index is ``cell_id``.
    nuclei
        Outlines of the nuclei, where there are cells too.
    labels
        ``(y, x)`` of the cells, lazy.
    measured
        A row a cell: its areas.
    """

    cells: gpd.GeoDataFrame
    nuclei: gpd.GeoDataFrame | None
    labels: DataArray
    measured: pd.DataFrame

    @classmethod
    def in_object(cls, sdata: Any, key_added: str) -> Found:
        """Take it from the object that `segment` filled."""
        masks = [name for name in ("cell", "nucleus") if f"{key_added}_{name}_labels" in sdata.labels]
        outlines = [_polygons(sdata, f"{key_added}_{name}_boundaries") for name in masks]
        obs = sdata.tables[f"{key_added}_table"].obs
        shown = [name for name in ("area", "area_um2") if name in obs]
        return cls(
            outlines[0],
            outlines[1] if len(masks) == 2 else None,
            _elements.read_labels(sdata, f"{key_added}_{masks[0]}_labels").data,
            obs[shown].reset_index(drop=True),
        )


def write_files(folder: Path, found: Found, wanted: Collection[str], metadata: Mapping[str, Any]) -> None:
    """Write outlines, and the formats that are wanted.

    Parameters
    ----------
    folder
        Where to write.
    found
        What there is.
    wanted
        Of "geojson", "imagej", "tiff" and "npy".
    metadata
        What is known of the run.
    """
    brief = {name: metadata[name] for name in _BRIEF}
    formats.write_parquet(folder / POLYGONS, found.cells, metadata=brief)
    if found.nuclei is not None:
        formats.write_parquet(folder / NUCLEI, found.nuclei, metadata=brief)
    if "geojson" in wanted:
        formats.write_geojson(folder / FILES["geojson"], found.cells, properties=found.measured)
    if "imagej" in wanted:
        formats.write_imagej(folder / FILES["imagej"], found.cells)
    if "tiff" in wanted:
        formats.write_label_tiff(folder / FILES["tiff"], found.labels, pixel_size=metadata["pixel-size"])
    if "npy" in wanted:
        image = Path(metadata["image-path"])
        formats.write_seg_npy(folder / seg_npy(image), found.labels, image_path=image, diameter=metadata["diameter"])


def _polygons(sdata: Any, name: str) -> gpd.GeoDataFrame:
    """Return outlines; there is no element where no object was found."""
    if name in sdata.shapes:
        return sdata.shapes[name]
    return gpd.GeoDataFrame(geometry=gpd.GeoSeries([]), index=pd.Index(np.zeros(0, np.int64), name="cell_id"))
