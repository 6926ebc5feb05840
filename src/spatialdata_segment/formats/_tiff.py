"""Label images as tiled TIFF, streamed, with the metadata of OME."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from spatialdata_segment._polygons import as_planes, check_positive, ndim_of
from spatialdata_segment._request import checked_pixel_size
from spatialdata_segment.formats._files import replacing

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    import dask.array as da
    import xarray as xr
    from numpy.typing import NDArray

_TILE = 512
_CLASSIC = 2**32 - 2**26
"""Bytes, uncompressed, up to which the offsets of a classic TIFF surely do."""


def write_label_tiff(
    path: str | os.PathLike[str],
    labels: NDArray[np.integer] | da.Array | xr.DataArray | xr.DataTree,
    *,
    pixel_size: float | Sequence[float] | None = None,
) -> None:
    """Write a label image as a tiled, compressed TIFF (BigTIFF where it may pass 4 GB).

    Labels of 32 bits are an OME-TIFF, which Bio-Formats (ImageJ, QuPath), napari, tifffile and scikit-image read. OME
    has no 64 bits: such labels are a TIFF with the axes in tifffile's own description. Rows of blocks are computed one
    after the other; a plane is never in memory as a whole, unless it is one block.

    Parameters
    ----------
    path
        The file, such as ``labels.tiff``; one that is there is replaced.
    labels
        ``(y, x)`` or ``(z, y, x)``, integer, 0 = background; of several scales the finest. Narrower types are written
        as uint32, int64 and uint64 as uint64.
    pixel_size
        µm a pixel: a number, or one per axis. None: not said.

    Raises
    ------
    InputError
        Other axes or types, negative ids, a pixel size that is none.
    """
    planes = as_planes(labels)
    ndim = ndim_of(labels)
    size = checked_pixel_size(pixel_size, ndim)
    dtype = np.dtype(np.uint64 if planes.dtype.itemsize == 8 else np.uint32)
    is_ome = dtype == np.uint32
    shape = planes.shape if ndim == 3 else planes.shape[1:]
    with (
        replacing(path) as new,
        tifffile.TiffWriter(new, bigtiff=planes.size * dtype.itemsize > _CLASSIC, ome=is_ome) as tiff,
    ):
        tiff.write(
            (tile for plane in planes for tile in _tiles(plane, dtype)),
            shape=shape,
            dtype=dtype,
            tile=(_TILE, _TILE),
            compression="zlib",
            photometric="minisblack",
            metadata=_metadata(size, ndim),
            **_resolution(size),
        )


def _tiles(plane: da.Array, dtype: np.dtype[Any]) -> Iterator[NDArray[np.integer]]:
    for band in _bands(plane):
        pixels = band.astype(dtype, copy=False)
        for y in range(0, pixels.shape[0], _TILE):
            for x in range(0, pixels.shape[1], _TILE):
                yield np.ascontiguousarray(pixels[y : y + _TILE, x : x + _TILE])


def _bands(plane: da.Array) -> Iterator[NDArray[np.integer]]:
    """Give whole rows of tiles; each row of blocks is computed once."""
    held = np.zeros((0, plane.shape[1]), plane.dtype)
    for start, stop in pairwise(np.cumsum((0, *plane.chunks[0])).tolist()):
        rows = plane[start:stop].compute()
        check_positive(rows)
        held = np.concatenate((held, rows)) if len(held) else rows
        whole = len(held) // _TILE * _TILE
        if whole:
            yield held[:whole]
        held = held[whole:]
    if len(held):
        yield held


def _metadata(size: tuple[float, ...] | None, ndim: int) -> dict[str, Any]:
    said: dict[str, Any] = {"axes": "ZYX"[-ndim:]}
    for axis, step in zip("ZYX"[-ndim:], size or (), strict=False):
        said |= {f"PhysicalSize{axis}": step, f"PhysicalSize{axis}Unit": "µm"}
    return said


def _resolution(size: tuple[float, ...] | None) -> dict[str, Any]:
    if size is None:
        return {}
    return {"resolution": (1e4 / size[-1], 1e4 / size[-2]), "resolutionunit": "CENTIMETER"}
