"""Opens and makes the stores that the command line names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spatialdata_segment.errors import InputError, MissingError

if TYPE_CHECKING:
    from spatialdata import SpatialData


def open_store(path: str) -> SpatialData:
    """Open a SpatialData store.

    Raises
    ------
    MissingError, InputError
        If there is none, or it cannot be read.
    """
    import spatialdata as sd

    from spatialdata_segment._remote import read_remote

    if "://" in path:
        return read_remote(path)
    if not Path(path).exists():
        raise MissingError(f"there is no store {path}: expected the folder of a SpatialData store, such as tissue.zarr")
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
