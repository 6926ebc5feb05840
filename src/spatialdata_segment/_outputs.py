"""Where results may go: an object's store, and the names that are taken. Changes nothing."""

from __future__ import annotations

import os
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from spatialdata._core.validation import check_valid_name
from spatialdata._io.format import SpatialDataContainerFormats
from xarray import DataArray, DataTree
from zarr.storage import FsspecStore, LocalStore

from spatialdata_segment._fsspec import METADATA, Remote
from spatialdata_segment._journal import DOT
from spatialdata_segment.engine.arrays import arrays_of, folder_of
from spatialdata_segment.errors import ExistsError, InputError, ScratchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from spatialdata import SpatialData

KINDS = ("images", "labels", "points", "shapes", "tables")
"""The kinds of elements, as spatialdata names them and their folders."""


def check_outputs(sdata: SpatialData, names: Mapping[str, str], overwrite: bool) -> None:
    """Check every output before anything is computed.

    Parameters
    ----------
    sdata
        The object that gets the outputs.
    names
        Name -> kind (``labels``, ``shapes`` or ``tables``).
    overwrite
        Whether elements of the same name and kind may be replaced.

    Raises
    ------
    ExistsError
        Names that are there, in memory or on disk, and may not be replaced.
    InputError
        Names that spatialdata does not take, alone or beside those there are.
    ScratchError
        A store that cannot be written to.
    """
    store = store_of(sdata)
    if store is not None:
        check_writable(store)
    there = elements_on_disk(store) | {(kind, name) for kind in KINDS for name in getattr(sdata, kind)}
    _check_names(names, {name for _, name in there})
    for kind, name in sorted(there):
        if name in names and kind != names[name]:
            msg = (
                f"{name!r} would be written as {names[name]} but names an element of {kind}, and names are "
                "unique over all kinds; choose another key_added=, or rename that element"
            )
            raise ExistsError(msg)
    taken = sorted(f"{kind}/{name}" for kind, name in there if name in names)
    if taken and not overwrite:
        more = f" and {len(taken) - 3} more" if len(taken) > 3 else ""
        msg = f"{', '.join(taken[:3])}{more} exist already; choose another key_added=, or give overwrite=True"
        raise ExistsError(msg)
    if store is not None:
        _check_readers(sdata, {_place(store, kind, name): name for kind, name in there if name in names})


def _place(store: Path | Remote, kind: str, name: str) -> str:
    return store.url(f"{kind}/{name}") if isinstance(store, Remote) else str((store / kind / name).resolve())


def _check_readers(sdata: SpatialData, replaced: Mapping[str, str]) -> None:
    """Raise where another element is lazy and reads files that would be replaced."""
    for kind in ("images", "labels"):
        for key, element in getattr(sdata, kind).items():
            for level in scales_of(element).values():
                for element in _elements_read(level.data):
                    name = replaced.get(element)
                    if name is not None and name != key:
                        msg = (
                            f"{kind}/{key} is lazy and reads {name!r}, which would be replaced; write "
                            f"{key!r} to the store and read it again first, or choose another key_added="
                        )
                        raise InputError(msg)


def _check_names(names: Iterable[str], there: set[str]) -> None:
    for name in names:
        try:
            check_valid_name(name)
        except (TypeError, ValueError) as e:
            msg = f"{name!r} cannot name an element: {e} Choose another key_added="
            raise InputError(msg) from e
        alike = sorted(n for n in there.union(names) if n.lower() == name.lower() and n != name)
        if alike:
            msg = (
                f"{name!r} differs from {alike[0]!r} in case alone, which spatialdata refuses; choose another "
                "key_added="
            )
            raise InputError(msg)


def store_of(sdata: SpatialData) -> Path | Remote | None:
    """Return an object's store, of this machine or not; None for an object in memory."""
    remote = getattr(sdata, "remote", None)
    return remote if sdata.path is None and isinstance(remote, Remote) else local_store(sdata)


def local_store(sdata: SpatialData) -> Path | None:
    """Return the folder of an object's store; None for an object in memory, or of a remote store.

    Raises
    ------
    InputError
        The store is not a folder of this machine, or is gone.
    """
    if sdata.path is None:
        return None
    path = Path(sdata.path)
    if not path.is_dir():
        msg = (
            f"the object is backed by {sdata.path}, which is no folder of this machine; expected a local "
            "Zarr store. Write it to one first: sdata.write(...); read a remote one with read_remote"
        )
        raise InputError(msg)
    return path


def check_writable(store: Path | Remote) -> None:
    """Raise a :class:`ScratchError` where a store cannot be written to."""
    if isinstance(store, Remote):
        store.check_writable(f"{DOT}/probe")
        return
    for folder in (store, *(store / kind for kind in KINDS)):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            msg = f"{folder} cannot be written to; make it writable, or sdata.write(...) to another place first"
            raise ScratchError(msg)


def elements_on_disk(store: Path | Remote | None) -> set[tuple[str, str]]:
    """Return kind and name of all elements in a store."""
    if isinstance(store, Remote):
        parts = [name.split("/") for kind in KINDS for name in store.find(kind, depth=2)]
        return {(p[0], p[1]) for p in parts if len(p) == 3 and p[2] in METADATA}
    folders = () if store is None else (store / kind for kind in KINDS)
    return {
        (folder.name, entry.name)
        for folder in folders
        if folder.is_dir()
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    }


def container_format(store: Path | Remote | None) -> Any:
    """Return the spatialdata format that a store is written in; None, the newest, for no store."""
    if store is None:
        return None
    where = store.store if isinstance(store, Remote) else store
    attributes: dict[str, Any] = zarr.open_group(where, mode="r", use_consolidated=False).attrs.asdict()
    version = attributes.get("spatialdata_attrs", {}).get("version", "0.1")
    if version not in SpatialDataContainerFormats:
        msg = (
            f"the store {store} has the spatialdata format {version!r}; spatialdata {version_of('spatialdata')} writes "
            f"{sorted(SpatialDataContainerFormats)}. Update spatialdata"
        )
        raise InputError(msg)
    return SpatialDataContainerFormats[version]


def scales_of(element: DataArray | DataTree) -> dict[str, DataArray]:
    """Return the scales of a raster element, the finest first."""
    if isinstance(element, DataArray):
        return {"scale0": element}
    return {name: next(iter(node.data_vars.values())) for name, node in element.children.items()}


def _elements_read(data: Any) -> Iterator[str]:
    """Give the places of the elements that a dask array is computed from."""
    for array in arrays_of(data):
        if isinstance(array.store, FsspecStore):
            yield Remote(array.store).url(array.path.rpartition("/")[0])
        elif isinstance(array.store, LocalStore):
            yield str(folder_of(array).resolve().parent)
