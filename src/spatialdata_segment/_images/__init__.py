"""Images in files: TIFF, Zarr, PNG and JPEG as lazy arrays. Knows arrays and files, not SpatialData."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from spatialdata_segment._images.facts import ImageFacts
from spatialdata_segment.errors import InputError, MissingError, is_whole

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SUFFIXES", "ImageFacts", "ImageType", "image_type_of", "read_image"]

ImageType = Literal["tiff", "zarr", "cv2", "image"]

SUFFIXES = {
    "tiff": (".tif", ".tiff", ".btf", ".tf8", ".tf2", ".svs", ".ndpi", ".scn", ".qptiff", ".lsm", ".stk"),
    "zarr": (".zarr", ".ngff"),
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".jp2", ".ppm", ".pgm"),
}
"""How names of files of each type end."""

_FIRST = {
    "tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "image": (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"GIF8", b"RIFF", b"\0\0\0\x0cjP", b"P5", b"P6"),
}
"""First bytes of files of each type."""
_ZARR = ("zarr.json", ".zarray", ".zgroup")


def read_image(
    path: str | Path,
    *,
    image_type: ImageType | None = None,
    page: int | None = None,
    channel_last: bool = False,
) -> tuple[xr.DataArray, ImageFacts]:
    """Open an image in a file, lazily.

    Tiles of a TIFF and chunks of a Zarr array are read when they are asked for; a PNG or JPEG is read whole. The array
    goes into an object as ``Image2DModel.parse(image)``.

    Parameters
    ----------
    path
        A TIFF (tiled, striped, pyramidal, OME, BigTIFF, ImageJ's, compressed), a Zarr array, an image of OME-Zarr 0.4
        or 0.5, a PNG, a JPEG, or another picture that Pillow knows. Of a pyramid the finest level is taken.
    image_type
        "tiff", "zarr" or "image" ("cv2" is the same). None: told by the file's content, then by its name.
    page
        Which plane, from 0, of a file with several: time points, z planes, unnamed pages, series. None: the only one;
        pages that the file does not name are then its channels.
    channel_last
        The channels are the last axis, whatever the file says. None are looked for where the file names its axes.

    Returns
    -------
    image
        ``(c, y, x)``, backed by dask, with the names of the channels; units px.
    facts
        What the file says: axes, pages, pixel size in µm.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it cannot be read, is no image, or it is not clear which plane is meant.
    """
    path = Path(path)
    if page is not None and not (is_whole(page) and page >= 0):
        raise InputError(f"page={page!r}, expected a whole number from 0")
    kind = image_type_of(path) if image_type is None else _checked(image_type, path)
    plane, facts = _reader(kind)(path, page=page, channel_last=channel_last)
    if 0 in plane.shape:
        raise InputError(f"{path} has no pixels: its shape is {facts.shape}")
    if plane.dtype.kind not in "buif":
        raise InputError(f"{path} has the dtype {plane.dtype}, expected integers or floats")
    if plane.dtype == bool:
        plane = plane.astype(np.uint8)
    elif plane.dtype == np.float16:
        plane = plane.astype(np.float32)
    elif not plane.dtype.isnative:
        plane = plane.astype(plane.dtype.newbyteorder("="))
    image = xr.DataArray(plane, dims=("c", "y", "x"), coords={"c": list(facts.channels)})
    return image, facts


def image_type_of(path: Path) -> str:
    """Return the type of an image: by its content, then by its name.

    Raises
    ------
    MissingError
        If there is nothing.
    InputError
        If it is no image.
    """
    if not path.exists():
        raise MissingError(f"there is no image {path}: check the path")
    if path.is_dir():
        if any((path / name).exists() for name in _ZARR):
            return "zarr"
        raise InputError(f"{path} is a folder and no Zarr: expected a TIFF, a Zarr, a PNG or a JPEG; for all images "
                         "of a folder, --image-dir")  # fmt: skip
    with path.open("rb") as file:
        head = file.read(16)
    for kind, starts in _FIRST.items():
        if head.startswith(starts):
            return kind
    for kind, ends in SUFFIXES.items():
        if kind != "zarr" and path.suffix.lower() in ends:
            return kind
    raise InputError(f"{path} is no image that is known: expected a TIFF, a Zarr, a PNG or a JPEG; see --image-type")


def _checked(image_type: str, path: Path) -> str:
    if not path.exists():
        raise MissingError(f"there is no image {path}: check the path")
    kind = "image" if image_type == "cv2" else image_type
    if kind not in SUFFIXES:
        raise InputError(f"image_type={image_type!r}, expected tiff, zarr, cv2 or image, or none to have it found out")
    return kind


def _reader(kind: str) -> Callable[..., Any]:
    if kind == "tiff":
        from spatialdata_segment._images.tiff import read_tiff

        return read_tiff
    if kind == "zarr":
        from spatialdata_segment._images.zarrs import read_zarr_image

        return read_zarr_image
    from spatialdata_segment._images.pictures import read_picture

    return read_picture
