"""Pages, strips and tiles of a TIFF as one lazy array: what images and labels are read through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from spatialdata_segment._images.facts import SIDE, blocks_of
from spatialdata_segment._images.lazy import lazy_array
from spatialdata_segment.engine.executor import cores

if TYPE_CHECKING:
    from pathlib import Path

    from tifffile import TiffPageSeries

SMALL = 2048 * 2048
"""px; an image up to that may be read row by row."""


def lazy_series(path: Path, which: int, series: TiffPageSeries, letters: str) -> tuple[da.Array, bool]:
    """Return a series of a TIFF at its finest level, lazily, and whether a box is read without much around it.

    What is neither compressed nor in pieces is mapped; of tiles as many are read at once as make about 512 x 512 px;
    strips, which go across the whole image, are kept once they are decoded, as far as there is room.

    Parameters
    ----------
    path
        The file.
    which
        The place of the series among those of the file.
    series
        The same, as tifffile describes it.
    letters
        What its axes are: "Y" and "X" rows and columns, others whatever.
    """
    if series.dataoffset is not None:
        mapped = np.memmap(path, _dtype(series), "r", series.dataoffset, series.shape)
        every = tuple(SIDE if a in "YX" else 1 for a in letters)
        blocks = blocks_of(letters, series.shape, every)
        return da.from_array(mapped, chunks=blocks, name=False, asarray=False), True
    array = _opened(path, which)
    y, x = letters.index("Y"), letters.index("X")
    is_in_strips = array.chunks[y] >= array.shape[y] or array.chunks[x] >= array.shape[x]
    lazy = lazy_array(array, blocks_of(letters, array.shape, array.chunks), path, keeps=is_in_strips)
    return lazy, not is_in_strips or array.shape[y] * array.shape[x] <= SMALL


def _dtype(series: TiffPageSeries) -> np.dtype[Any]:
    assert series.dtype is not None
    return series.dtype.newbyteorder(series.keyframe.parent.byteorder)


def _opened(path: Path, which: int) -> Any:
    """Open the finest level of a series as a zarr array, whose chunks are the tiles or strips."""
    import tifffile
    import zarr

    # more than one worker: tiles are decoded in threads, not in zarr's own
    store = tifffile.imread(path, aszarr=True, series=which, level=0, maxworkers=max(2, cores()))
    return zarr.open_array(store, mode="r")
