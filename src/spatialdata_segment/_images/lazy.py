"""Arrays in files as dask arrays, whose errors name the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from spatialdata_segment._images.facts import Axes


class Pixels:
    """An array in a file, as dask reads it.

    Parameters
    ----------
    array
        Of zarr.
    path
        What errors name.
    """

    def __init__(self, array: Any, path: Path) -> None:
        self._array, self._path = array, path
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __getitem__(self, key: Any) -> NDArray[Any]:
        try:
            return np.asarray(self._array[key])
        except Exception as error:  # codecs raise many kinds for what is spoilt
            said = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{self._path} cannot be decoded ({said}): it is damaged, or compressed by what is not known here; "
                "copy it again, or save it as a tiled TIFF with deflate or LZW"
            ) from error


def lazy_array(array: Any, axes: Axes, stored: tuple[int, ...], path: Path) -> da.Array:
    """Return an array that is read in whole stored chunks."""
    lazy: da.Array = da.from_array(Pixels(array, path), chunks=axes.blocks(stored), name=False)
    return lazy
