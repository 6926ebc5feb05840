"""Opens and makes the stores that the command line names."""

from __future__ import annotations

import shutil
from math import ceil, log2
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialdata_segment.errors import InputError, MissingError

if TYPE_CHECKING:
    from spatialdata import SpatialData
    from xarray import DataArray

_CHUNK, _COARSEST = 1024, 2048
"""px: of the chunks of an image that is written, and of the longest side of its coarsest scale."""


def open_store(path: str) -> SpatialData:
    """Open a SpatialData store; what a killed run left half in its place is put there whole before.

    Raises
    ------
    MissingError, InputError
        If there is none, or it cannot be read.
    ScratchError
        If something waits to be put in its place, and the store cannot be written to.
    """
    import spatialdata as sd

    from spatialdata_segment._journal import recover, waits
    from spatialdata_segment._remote import read_remote

    if "://" in path:
        return read_remote(path)
    if not Path(path).exists():
        raise MissingError(f"there is no store {path}: expected the folder of a SpatialData store, such as tissue.zarr")
    if waits(Path(path)):
        recover(Path(path))
    try:
        return sd.read_zarr(path)
    except Exception as error:
        raise InputError(f"{path} cannot be read as a SpatialData store: {type(error).__name__}: {error}") from error


def open_or_make_store(path: str) -> SpatialData:
    """Open a SpatialData store, or write an empty one where there is nothing."""
    if "://" not in path and not Path(path).exists():
        import spatialdata as sd

        sd.SpatialData().write(path)
    return open_store(path)


def make_store(path: Path, image: DataArray, *, keep_image: bool) -> SpatialData:
    """Write a store for the segmentation of an image, and open it.

    The store appears under its name when it is complete. Without ``keep_image`` it has no image, and the object reads
    its image from where it did.

    Parameters
    ----------
    path
        Where nothing is yet, or the store that an earlier call made.
    image
        ``(c, y, x)``, lazy. Written with a pyramid where it is large.
    keep_image
        Whether the image is written into the store.
    """
    import spatialdata as sd

    factors = [2] * max(0, ceil(log2(max(image.shape[1:]) / _COARSEST))) if keep_image else []
    element = _element(image, factors)
    if not path.exists():
        temporary = path.with_name(f".{path.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        sd.SpatialData(images={"image": element} if keep_image else {}).write(temporary)
        temporary.rename(path)
    sdata = open_store(str(path))
    if not keep_image:
        sdata.images["image"] = element
    return sdata


def in_memory(image: DataArray) -> SpatialData:
    """Return an object with a lazy image ``(c, y, x)``, named "image", and nothing on disk."""
    import spatialdata as sd

    return sd.SpatialData(images={"image": _element(image, [])})


def _element(image: DataArray, factors: list[int]) -> Any:
    from spatialdata.models import Image2DModel

    names = image.coords["c"].values.tolist()
    return Image2DModel.parse(image, c_coords=names, chunks=(1, _CHUNK, _CHUNK), scale_factors=factors or None)
