"""The reader of objects whose store is not on this machine, which spatialdata itself cannot open.

spatialdata reads a local copy of the store without the pixels; the images and labels of what it returns are then
made to read the remote arrays. ``_fsspec.py`` is the way there, ``_upload.py`` the way back.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dask.array as da
import spatialdata as sd
import zarr
from xarray import DataTree

from spatialdata_segment._fsspec import METADATA, Remote, open_remote
from spatialdata_segment.engine.arrays import folder_of, zarr_array
from spatialdata_segment.errors import InputError, MissingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from upath import UPath
    from xarray import DataArray
    from zarr.storage import FsspecStore

KINDS = ("images", "labels", "shapes", "tables")
"""What is read."""
_RASTER = ("images", "labels")


class RemoteSpatialData(sd.SpatialData):  # type: ignore[misc]
    """An object of a remote store: `segment` writes its result there. A copy or a subset is an object in memory.

    Attributes
    ----------
    remote
        The store.
    """

    remote: Remote

    def __repr__(self) -> str:
        return str(super().__repr__()).replace("SpatialData object", f"SpatialData object of {self.remote}", 1)


def read_remote(
    store: str | UPath | FsspecStore,
    selection: Sequence[str] | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> RemoteSpatialData:
    """Read a SpatialData store from S3 or another object store.

    As `spatialdata.read_zarr` does of a local one: images and labels are lazy, shapes and tables in memory. Points
    are not read.

    Parameters
    ----------
    store
        Address (``s3://bucket/name.zarr``), ``UPath``, or `zarr.storage.FsspecStore`.
    selection
        Kinds of elements to read, of ``images``, ``labels``, ``shapes``, ``tables``; None: all.
    storage_options
        For fsspec, such as ``{"endpoint_url": ..., "anon": True}``; with an address only.

    Returns
    -------
    The object; what `segment` and the other functions make of it is written to the store.

    Raises
    ------
    MissingError
        No store there, or no package for that kind of address; names it.
    InputError
        A store that cannot be read, such as for want of rights; an address or a selection that means nothing.
    """
    kinds = KINDS if selection is None else tuple(selection)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(f"selection={selection!r} holds {unknown[0]!r}, expected some of {', '.join(KINDS)}")
    remote = open_remote(store, storage_options)
    there = read_elements(remote, kinds)
    sdata = RemoteSpatialData(**{kind: dict(getattr(there, kind)) for kind in kinds}, attrs=there.attrs)
    sdata.remote = remote
    return sdata


def read_elements(
    remote: Remote, kinds: Sequence[str], *, on_bad_files: Literal["error", "warn"] = "error"
) -> sd.SpatialData:
    """Read the elements of some kinds; their images and labels read the remote arrays."""
    root = [name for name in remote.find(depth=1) if name in METADATA]
    if not root:
        raise MissingError(f"no SpatialData store at {remote}; check the address, and what lies there")
    with tempfile.TemporaryDirectory(prefix="spatialdata-segment-", ignore_cleanup_errors=True) as folder:
        copy = Path(folder, "copy.zarr")
        names = [name for kind in kinds for name in remote.find(kind, depth=3 if kind in _RASTER else None)]
        wanted = [n for n in names if n.partition("/")[0] not in _RASTER or n.rpartition("/")[2] in METADATA]
        remote.download([*root, *wanted], copy)
        sdata = sd.read_zarr(copy, selection=tuple(kinds), on_bad_files=on_bad_files)
        for kind in _RASTER:
            elements = getattr(sdata, kind)
            for name in list(elements):
                elements[name] = _pointed(elements[name], remote, copy)
    sdata.path = None
    return sdata


def _pointed(element: DataArray | DataTree, remote: Remote, copy: Path) -> DataArray | DataTree:
    """Let a raster element that reads a local copy read the remote store."""
    if isinstance(element, DataTree):
        levels = {
            k: node.to_dataset().map(_pointed, keep_attrs=True, args=(remote, copy))
            for k, node in element.children.items()
        }
        return DataTree.from_dict(levels, name=element.name)
    array = zarr_array(element.data)
    assert array is not None
    path = folder_of(array).resolve().relative_to(copy.resolve()).as_posix()
    there = zarr.open_array(remote.store, path=path, mode="r", zarr_format=array.metadata.zarr_format)
    return element.copy(data=da.from_zarr(there))
