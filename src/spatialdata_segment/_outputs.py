"""Where results may go: an object's store, and the names that are taken. Changes nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import zarr
from spatialdata._core.validation import check_valid_name
from xarray import DataArray, DataTree

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
    store = local_store(sdata)
    if store is not None:
        check_writable(store)
    there = elements_on_disk(store) | {(kind, name) for kind in KINDS for name in getattr(sdata, kind)}
    _check_names(names, {name for _, name in there})
    for kind, name in sorted(there):
        if name in names and kind != names[name]:
            msg = (
                f"{name!r} would be written as {names[name]} but names an element of {kind}, and names are "
                "unique over all kinds; choose another key_added, or rename that element"
            )
            raise ExistsError(msg)
    taken = sorted(f"{kind}/{name}" for kind, name in there if name in names)
    if taken and not overwrite:
        more = f" and {len(taken) - 3} more" if len(taken) > 3 else ""
        msg = f"{', '.join(taken[:3])}{more} exist already; choose another key_added, or give overwrite=True"
        raise ExistsError(msg)
    if store is not None:
        _check_readers(sdata, {(store / kind / name).resolve(): name for kind, name in there if name in names})


def _check_readers(sdata: SpatialData, replaced: Mapping[Path, str]) -> None:
    """Raise where another element is lazy and reads files that would be replaced."""
    for kind in ("images", "labels"):
        for key, element in getattr(sdata, kind).items():
            for level in scales_of(element).values():
                for path in _arrays_read(level.data):
                    name = replaced.get(path.parent)
                    if name is not None and name != key:
                        msg = (
                            f"{kind}/{key} is lazy and reads {name!r}, which would be replaced; write "
                            f"{key!r} to the store and read it again first, or choose another key_added"
                        )
                        raise InputError(msg)


def _check_names(names: Iterable[str], there: set[str]) -> None:
    for name in names:
        try:
            check_valid_name(name)
        except (TypeError, ValueError) as e:
            msg = f"{name!r} cannot name an element: {e} Choose another key_added"
            raise InputError(msg) from e
        alike = sorted(n for n in there.union(names) if n.lower() == name.lower() and n != name)
        if alike:
            msg = (
                f"{name!r} differs from {alike[0]!r} in case alone, which spatialdata refuses; choose another key_added"
            )
            raise InputError(msg)


def local_store(sdata: SpatialData) -> Path | None:
    """Return the folder of an object's store; None for an object in memory.

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
            "Zarr store. Write it to one first: sdata.write(...)"
        )
        raise InputError(msg)
    return path


def check_writable(store: Path) -> None:
    """Raise a :class:`ScratchError` where a store cannot be written to."""
    for folder in (store, *(store / kind for kind in KINDS)):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            msg = f"{folder} cannot be written to; make it writable, or sdata.write(...) to another place first"
            raise ScratchError(msg)


def elements_on_disk(store: Path | None) -> set[tuple[str, str]]:
    """Return kind and name of all elements in a store."""
    folders = () if store is None else (store / kind for kind in KINDS)
    return {
        (folder.name, entry.name)
        for folder in folders
        if folder.is_dir()
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    }


def root_attributes(store: Path) -> dict[str, Any]:
    """Return the attributes of a store's root group."""
    attributes: dict[str, Any] = zarr.open_group(store, mode="r", use_consolidated=False).attrs.asdict()
    return attributes


def scales_of(element: DataArray | DataTree) -> dict[str, DataArray]:
    """Return the scales of a raster element, the finest first."""
    if isinstance(element, DataArray):
        return {"scale0": element}
    return {name: next(iter(node.data_vars.values())) for name, node in element.children.items()}


def _arrays_read(data: Any) -> Iterator[Path]:
    """Give the folders of the zarr arrays that a dask array is computed from."""
    layers = data.dask.layers.items() if isinstance(data, da.Array) else ()
    for name, layer in layers:
        if name.startswith("original-from-zarr-"):
            array = layer[name]
            if isinstance(array, zarr.Array) and hasattr(array.store, "root"):
                yield (Path(array.store.root) / array.path).resolve()
