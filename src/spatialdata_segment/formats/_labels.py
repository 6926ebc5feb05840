"""Label images for the writers: planes of dask arrays, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import dask.array as da
import numpy as np
import xarray as xr

from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 2048


def as_planes(labels: NDArray[np.integer] | da.Array | xr.DataArray) -> da.Array:
    """Return labels ``(y, x)`` or ``(z, y, x)`` as a dask array ``(z, y, x)``.

    Raises
    ------
    InputError
        Other axes, or no integers.
    """
    if isinstance(labels, xr.DataArray):
        axes = ("z", "y", "x")[-labels.ndim :]
        if labels.ndim not in (2, 3) or set(labels.dims) != set(axes):
            raise InputError(f"labels have the axes {labels.dims}: expected (y, x) or (z, y, x)")
        labels = labels.transpose(*axes).data
    data: Any = labels
    if data.ndim not in (2, 3) or data.dtype.kind not in "iu":
        raise InputError(
            f"labels of type {data.dtype} and shape {data.shape}: expected integers, 0 = background, with the axes "
            "(y, x) or (z, y, x)"
        )
    if not isinstance(data, da.Array):
        data = da.from_array(data, chunks=(*(1,) * (data.ndim - 2), _BLOCK, _BLOCK), name=False)
    return cast("da.Array", data if data.ndim == 3 else data[None])


def checked_ids_of(labels: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return labels, none of which may be negative."""
    if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
        raise InputError(f"labels hold the id {labels.min()}: expected ids > 0, and 0 for the background")
    return labels
