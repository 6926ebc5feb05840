"""An object shown what came to lie in its store: after a commit, and after a killed run's exchange."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import spatialdata as sd
from xarray import DataTree

from spatialdata_segment import _journal
from spatialdata_segment._fsspec import Remote
from spatialdata_segment._outputs import local_store
from spatialdata_segment._remote import read_elements

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from xarray import DataArray


def recover(store: Path) -> bool:
    """Finish what a killed run began to put in place in a store, and discard what it only staged.

    Returns
    -------
    True where there was an exchange to finish. Objects read before do not know of it: :func:`recover_sdata`.
    """
    return _journal.recover(Path(store)) is not None


def recover_sdata(sdata: sd.SpatialData) -> bool:
    """:func:`recover` the store of an object, if it has one, and show the object what came of it."""
    store = local_store(sdata)
    journal = None if store is None else _journal.recover(store)
    if store is None or journal is None:
        return False
    install(sdata, store, journal.put, journal.remove, {})
    return True


@contextmanager
def _quiet_reader() -> Iterator[None]:
    """Keep ome-zarr from telling that labels stand in a store without images."""
    logger = logging.getLogger("ome_zarr.reader")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def install(
    sdata: sd.SpatialData,
    store: Path | Remote,
    put: Iterable[tuple[str, str]],
    remove: Iterable[tuple[str, str]],
    given: Mapping[tuple[str, str], Any],
    *,
    in_memory: bool = False,
) -> None:
    """Show an object what lies in a store: ``given`` elements as they are, the others as they are read."""
    wanted = [pair for pair in put if pair not in given]
    kinds = tuple({kind: None for kind, _ in wanted})
    with warnings.catch_warnings(), _quiet_reader():
        warnings.simplefilter("ignore")
        if isinstance(store, Remote):
            there = read_elements(store, kinds, on_bad_files="warn") if kinds else sd.SpatialData()
        else:
            there = sd.read_zarr(store, selection=kinds, on_bad_files="warn") if kinds else sd.SpatialData()
    for kind, name in remove:
        getattr(sdata, kind).pop(name, None)
    for kind, name in put:
        element = given[kind, name] if (kind, name) in given else getattr(there, kind)[name]
        getattr(sdata, kind)[name] = _load(element) if in_memory and kind == "labels" else element


def _load(element: DataArray | DataTree) -> DataArray | DataTree:
    """Bring labels into memory, as dask arrays over numpy arrays."""
    if not isinstance(element, DataTree):
        pixels = np.asarray(element.data)
        return element.copy(data=da.from_array(pixels, chunks=element.data.chunksize))
    levels = {k: node.to_dataset().map(_load, keep_attrs=True) for k, node in element.children.items()}
    return DataTree.from_dict(levels, name=element.name)
