"""A large real image: the 520 x 696 images of ``dsb2018`` laid out side by side, with their labels.

Those 62 images are 8-bit grey fluorescence on a dark ground, which is checked as they are read. The
colour and bright-field images of the source have other sizes, so they never enter a mosaic.
The seams between tiles are sharp: let shard borders fall elsewhere.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from skimage.io import imread

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

TILE = 520, 696


def tile_ids(data: Path) -> list[str]:
    """Return the ids of the images that a mosaic is made of, in their order."""
    with (Path(data) / "dsb2018" / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    return sorted(row["id"] for row in rows if (int(row["height"]), int(row["width"])) == TILE)


def mosaic(data: Path, rows: int, cols: int) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Return a mosaic and its labels, ``(y, x)`` uint8 and uint32.

    Parameters
    ----------
    data
        Folder that holds ``dsb2018``.
    rows, cols
        Number of tiles; 8 x 8 gives 4,160 x 5,568 pixels. When the images run out they come again mirrored
        along x, then along y, then along both, and so on.
    """
    ids = tile_ids(data)
    height, width = TILE
    image = np.zeros((rows * height, cols * width), np.uint8)
    labels = np.zeros(image.shape, np.uint32)
    last = 0
    for k in range(rows * cols):
        grey, mask = _tile(Path(data) / "dsb2018", ids[k % len(ids)])
        flip = k // len(ids) % 4
        step = np.s_[:: -1 if flip & 2 else 1, :: -1 if flip & 1 else 1]
        y, x = k // cols * height, k % cols * width
        present, index = np.unique(mask, return_inverse=True)
        number = np.zeros(len(present), np.uint32)
        number[present > 0] = last + 1 + np.arange((present > 0).sum())
        last = max(last, int(number.max(initial=0)))
        image[y : y + height, x : x + width] = grey[step]
        labels[y : y + height, x : x + width] = number[index].reshape(TILE)[step]
    return image, labels


def mosaic_spatialdata(
    data: Path,
    path: Path,
    rows: int,
    cols: int,
    *,
    chunks: int = 1024,
    scale_factors: list[int] | None = None,
    truth: bool = False,
) -> SpatialData:
    """Write a mosaic as a SpatialData store and return it, backed.

    Parameters
    ----------
    data, rows, cols
        As in :func:`mosaic`.
    path
        Store to write; must not exist.
    chunks
        Side (px) of the chunks on disk.
    scale_factors
        Of the image's pyramid.
    truth
        Write the labels ``truth`` too.

    Returns
    -------
    Image ``image`` with the channel ``DAPI``.
    """
    import dask.array as da
    from spatialdata import SpatialData, read_zarr
    from spatialdata.models import Image2DModel, Labels2DModel

    image, labels = mosaic(data, rows, cols)
    lazy = da.from_array(image[None], chunks=(1, chunks, chunks))
    images = {"image": Image2DModel.parse(lazy, dims=("c", "y", "x"), c_coords=["DAPI"], scale_factors=scale_factors)}
    masks = {}
    if truth:
        masks["truth"] = Labels2DModel.parse(da.from_array(labels, chunks=chunks), dims=("y", "x"))
    SpatialData(images=images, labels=masks).write(path)
    return read_zarr(path)


def _tile(folder: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Return one image and its labels; refuse what is not grey fluorescence."""
    grey, mask = imread(folder / "images" / f"{name}.png"), imread(folder / "labels" / f"{name}.png")
    if grey.shape != TILE or grey.dtype != np.uint8 or mask.shape != TILE:
        raise ValueError(f"{name}: {grey.shape} {grey.dtype}, labels {mask.shape}; expected grey uint8 {TILE}.")
    if np.median(grey) > 128:
        raise ValueError(f"{name}: median {np.median(grey)}; expected fluorescence on a dark ground.")
    return grey, mask
