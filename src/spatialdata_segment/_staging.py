"""The writer of SpatialData: results staged beside their place, then put there all at once.

What lies on disk is written by spatialdata itself, into a small store of its own; only the levels of labels
are written by us, region by region. ``_journal.py`` moves the elements; ``_elements.py`` reads. What the
tables hold is ``_table.py``'s.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import shutil
import tempfile
import warnings
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import dask.array as da
import numpy as np
import spatialdata as sd
import zarr
from spatialdata.models import Labels2DModel, Labels3DModel, ShapesModel
from xarray import DataTree

from spatialdata_segment import _journal, _ngff
from spatialdata_segment._documents import Pairs, is_consolidated
from spatialdata_segment._elements import of_planes
from spatialdata_segment._fsspec import Remote
from spatialdata_segment._install import install, recover, recover_sdata
from spatialdata_segment._lock import Lock
from spatialdata_segment._outputs import (
    KINDS,
    check_writable,
    container_format,
    elements_on_disk,
    store_of,
)
from spatialdata_segment._upload import upload
from spatialdata_segment.errors import InputError, ScratchError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from types import TracebackType

    import geopandas as gpd
    from anndata import AnnData
    from numpy.typing import DTypeLike
    from spatialdata.transformations import BaseTransformation
    from xarray import DataArray

__all__ = ["Staging", "recover", "recover_sdata"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Staging:
    """The elements that one run writes: staged one by one, then put in place together.

    Use it as a context manager. Left without :meth:`commit`, by an exception or not, it leaves the object and
    the store as they were. For a backed object the elements are staged in ``STORE/.spatialdata_segment`` and
    end up on disk; else in a folder beside, and end up in memory, or on the remote store that the object is of.

    Parameters
    ----------
    sdata
        The object that gets the elements; changed by :meth:`commit` alone.
    folder
        Where to stage for an object without a store on this machine; the system's temporary folder by default.

    Raises
    ------
    ScratchError
        The store or the folder cannot be written to, or the disk is full.
    """

    def __init__(self, sdata: sd.SpatialData, folder: Path | None = None) -> None:
        self._sdata = sdata
        self._store = store_of(sdata)
        self._folder = folder
        self._put: list[tuple[str, str]] = []
        self._remove: list[tuple[str, str]] = []
        self._open: dict[str, int] = {}  # labels whose levels are being written: their bytes, uncompressed
        self._given: dict[tuple[str, str], Any] = {}
        self._discarded = False

    def __enter__(self) -> Self:
        if self._store is not None:
            check_writable(self._store)
        if isinstance(self._store, Path):
            recover_sdata(self._sdata)
        self._formats = container_format(self._store)
        with self._disk("the staging folder"):
            self._lock = self._make_stage()
            self._stage = self._lock.path.parent
            try:
                self._new = sd.SpatialData()
                self._new.write(self._stage / _journal.NEW, sdata_formats=self._formats, consolidate_metadata=False)
            except BaseException:
                self._discard()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._journaled():  # stopped half way through the exchange: the stage is what the next run needs
            self._lock.release()
            return
        full = _disk_full(error)
        message = self._failed("the result", full)
        self._discard()
        if full is not None:
            raise ScratchError(message) from error

    def labels(
        self,
        name: str,
        *,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        transformations: Mapping[str, BaseTransformation],
        pyramid: tuple[tuple[int, ...], ...],
        chunks: tuple[int, ...],
    ) -> zarr.Array[Any]:
        """Stage labels and return their finest level, zero everywhere, to be written region by region.

        Parameters
        ----------
        name
            The element's name.
        shape
            Pixels, axes ``([z], y, x)``.
        dtype
            An unsigned integer type.
        transformations
            Of this grid to each coordinate system; copied.
        pyramid
            Shapes of all levels, the finest (``shape``) first.
        chunks
            Pixels of a chunk on disk. Writers at the same time must not share a chunk of the array returned.

        Returns
        -------
        An array in the element's final layout. It may be pickled, and written from threads and processes.
        """
        if tuple(pyramid[0]) != tuple(shape) or np.dtype(dtype).kind != "u":
            msg = (
                f"labels {name!r} of shape {shape} and dtype {np.dtype(dtype)} with levels {pyramid}: "
                "expected an unsigned dtype, and the shape as the first level"
            )
            raise InputError(msg)
        template = _template(len(shape), np.dtype(dtype), len(pyramid), transformations)
        self._open[name] = 2 * int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
        with self._disk(f"labels {name!r}"):
            folder = self._write("labels", name, template)
            levels = _ngff.stretch(folder, pyramid, chunks)
            return zarr.open_array(levels[0], mode="r+", config={"write_empty_chunks": True})  # writers know better

    def drop_labels(self, name: str) -> None:
        """Forget staged labels that are not finished, so that they can be staged anew."""
        shutil.rmtree(self._stage / _journal.NEW / "labels" / name)
        del self._open[name]

    def finish_labels(self, name: str) -> None:
        """Build the coarser levels of staged labels from the disk, chunk by chunk."""
        if name not in self._open:
            msg = f"labels {name!r} are not being staged; labels() comes first. Staged: {sorted(self._open)}"
            raise InputError(msg)
        folder = self._stage / _journal.NEW / "labels" / name
        with self._disk(f"the levels of labels {name!r}"):
            arrays = [zarr.open_array(level, mode="r+") for level in _ngff.levels_of(folder)]
            for fine, coarse in pairwise(arrays):
                _ngff.coarsen(fine, coarse)
            self._staged("labels", name)
        del self._open[name]

    def shapes(self, name: str, gdf: gpd.GeoDataFrame, transformations: Mapping[str, BaseTransformation]) -> None:
        """Stage shapes, in the coordinates ``(x, y)`` that ``transformations`` start from."""
        if len(gdf) == 0:
            msg = f"shapes {name!r} have no row, which spatialdata cannot hold; leave out, remove() old ones"
            raise InputError(msg)
        given = of_planes(transformations) if "z_index" in gdf.columns else transformations
        copied = copy.deepcopy(dict(given))
        element = ShapesModel.parse(gdf.copy(deep=False), transformations=copied)
        self._stage_given("shapes", name, element)

    def table(self, name: str, adata: AnnData) -> None:
        """Stage a table; ``TableModel.parse`` has seen it."""
        self._stage_given("tables", name, adata)

    def remove(self, names: Collection[str]) -> None:
        """Take away elements of an earlier result, in memory and on disk; unknown names are passed over."""
        there = {(kind, name) for kind in KINDS for name in getattr(self._sdata, kind)}
        there |= elements_on_disk(self._store)
        if isinstance(self._store, Remote):  # what an upload that stopped left of them is not to be seen
            there |= set(product(KINDS, names))
        self._remove += sorted(pair for pair in there if pair[1] in names)

    def commit(self) -> None:
        """Put every staged element in its place, on disk and in the object.

        Raises
        ------
        ScratchError
            The disk failed. Before the exchange began nothing has changed; afterwards the next run on the
            store, or :func:`recover`, finishes it. Of a remote store: see :mod:`._upload`.
        """
        if self._open:
            msg = f"labels {sorted(self._open)} are staged but not finished; call finish_labels() first"
            raise InputError(msg)
        put, remove = tuple(self._put), tuple(p for p in self._remove if p not in self._put)
        new = self._stage / _journal.NEW
        with self._disk("the result"):
            if isinstance(self._store, Path):
                _journal.sync_tree(self._stage)
                _journal.step("staged")
                self._exchange(self._store, put, remove)
            elif self._store is not None:
                upload(self._store, new, put, remove)
            else:
                install(self._sdata, new, put, remove, self._given, in_memory=True)
        if self._store is not None:
            install(self._sdata, self._store, put, remove, self._given)
        self._discard()

    def _exchange(self, store: Path, put: Pairs, remove: Pairs) -> None:
        with _journal.locked(store):
            consolidated = is_consolidated(_journal.LocalDocuments(store, store / _journal.DOT))
            journal = _journal.Journal(self._stage.name, consolidated, put, remove)
            _journal.write(store, journal)
            _journal.roll_forward(store, journal)

    def _make_stage(self) -> Lock:
        if isinstance(self._store, Path):
            with _journal.locked(self._store) as dot:
                return _journal.new_stage(dot)
        if self._folder is not None:
            Path(self._folder).mkdir(parents=True, exist_ok=True)
        return _journal.new_stage(Path(tempfile.mkdtemp(prefix="spatialdata-segment-", dir=self._folder)))

    def _discard(self) -> None:
        if self._discarded:  # a later run may have taken the folder's name
            return
        self._discarded = True
        shutil.rmtree(self._stage, ignore_errors=True)
        self._lock.abandon()
        with contextlib.suppress(OSError):  # others may have staged there
            self._stage.parent.rmdir()

    def _write(self, kind: str, name: str, element: Any) -> Path:
        """Let spatialdata write an element into the staged store; do not keep it."""
        container = getattr(self._new, kind)
        container[name] = element
        with warnings.catch_warnings():  # of an old format: the store's; of a table's region: it is elsewhere
            warnings.simplefilter("ignore")
            self._new.write_element(name, sdata_formats=self._formats)
        del container[name]
        folder: Path = self._stage / _journal.NEW / kind / name
        return folder

    def _stage_given(self, kind: str, name: str, element: Any) -> None:
        """Stage what is in memory already; an object without a store gets it from there."""
        with self._disk(f"{kind} {name!r}"):
            if self._store is not None:
                self._write(kind, name, element)
            self._staged(kind, name, element)

    def _staged(self, kind: str, name: str, element: Any = None) -> None:
        if isinstance(self._store, Path):
            _journal.mark(self._stage / _journal.NEW / kind / name)
        self._put.append((kind, name))
        if element is not None:
            self._given[kind, name] = element

    @contextlib.contextmanager
    def _disk(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise ScratchError(self._failed(what, e)) from e

    def _journaled(self) -> bool:
        """Tell whether the exchange has begun and waits to be finished."""
        stage = getattr(self, "_stage", None)
        return isinstance(self._store, Path) and stage is not None and _journal.awaits(self._store, stage.name)

    def _failed(self, what: str, error: BaseException | None) -> str:
        where = getattr(self, "_stage", None) or self._folder or tempfile.gettempdir()
        free = "unknown"
        with contextlib.suppress(OSError):
            free = f"{shutil.disk_usage(where).free / 2**30:.2f} GiB"
        need = sum(self._open.values()) / 2**30
        state = (
            "The new elements are complete and the next run on this store puts them in place"
            if self._journaled()
            else "Nothing has been changed"
        )
        return (
            f"writing {what} in {where} failed: {error}. Free there: {free}; the labels being staged need at "
            f"most {need:.2f} GiB, usually a tenth of it. {state}; free some space, or mend the folder, and "
            "run again"
        )


def _template(
    ndim: int, dtype: np.dtype[Any], levels: int, transformations: Mapping[str, BaseTransformation]
) -> DataArray | DataTree:
    """Labels of the least size, with that many levels."""
    dims = ("z", "y", "x")[-ndim:]
    factor = {"z": 1, "y": 2, "x": 2}
    shape = tuple(factor[d] ** (levels - 1) for d in dims)
    model = Labels2DModel if ndim == 2 else Labels3DModel
    element: DataArray | DataTree = model.parse(
        da.zeros(shape, dtype=dtype, chunks=shape),
        dims=dims,
        transformations=copy.deepcopy(dict(transformations)),
        scale_factors=[{d: factor[d] for d in dims}] * (levels - 1) or None,
    )
    return element


def _disk_full(error: BaseException | None) -> OSError | None:
    """Return the full disk at the root of an exception that is not ours."""
    while error is not None and not isinstance(error, ScratchError):
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        error = error.__cause__
    return None
