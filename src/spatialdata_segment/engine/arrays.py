"""The zarr arrays that lazy arrays read: which they are, where they lie, what tells that one has changed."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import zarr
from zarr.storage import FsspecStore, LocalStore

from spatialdata_segment._fsspec import METADATA, Remote
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)


def arrays_of(data: Any) -> Iterator[zarr.Array[Any]]:
    """Give the arrays that a dask array is computed from, as far as they can be told."""
    layers = data.dask.layers.items() if isinstance(data, da.Array) else ()
    for name, layer in layers:
        held = layer.get(name) if name.startswith("original-") else None
        array = getattr(held, "value", held)
        if isinstance(array, zarr.Array):
            yield array


def zarr_array(data: Any) -> zarr.Array[Any] | None:
    """Return the array of which a dask array is nothing but the reading."""
    is_plain = isinstance(data, da.Array) and data.name.startswith("from-zarr-")
    return next(arrays_of(data), None) if is_plain else None


def folder_of(array: zarr.Array[Any]) -> Path:
    """Return the folder of an array on disk."""
    assert isinstance(array.store, LocalStore)
    return array.store.root / array.path


def fingerprint(array: zarr.Array[Any]) -> dict[str, Any] | None:
    """Return what tells, without reading pixels, whether an array has changed; None where nothing does.

    Returns
    -------
    SHA-256 of its metadata, and of names, sizes and times (ns) of its chunk files, and their number. The tags that a
    remote store gives its files (ETag), where it does, stand for the times.
    """
    if isinstance(array.store, FsspecStore):
        documents, chunks = _remote_files(Remote(array.store), array.path)
        if not chunks:  # it may hide them: the pixels are then read to compare them
            return None
    else:
        documents, chunks = _local_files(folder_of(array))
    lines = [f"{name}\0{stamp}\n" for name, stamp in sorted(chunks.items())]
    return {
        "metadata": hashlib.sha256(b"".join(documents)).hexdigest(),
        "chunks": hashlib.sha256("".join(lines).encode()).hexdigest(),
        "n_chunks": len(chunks),
    }


def _local_files(root: Path) -> tuple[list[bytes], dict[str, str]]:
    """Return the content of an array's metadata files; names of its other files, with sizes and times."""
    chunks = {}
    for folder, _, files in os.walk(root):
        for name in set(files).difference(METADATA):
            path = Path(folder, name)
            stat = path.stat()
            chunks[path.relative_to(root).as_posix()] = f"{stat.st_size}\0{stat.st_mtime_ns}"
    return [p.read_bytes() for name in METADATA if (p := root / name).exists()], chunks


def _remote_files(remote: Remote, path: str) -> tuple[list[bytes], dict[str, str]]:
    """:func:`_local_files` of an array elsewhere."""
    try:
        found = remote.find(path)
    except InputError as error:  # public stores may be read and not listed
        logger.info("%s cannot be listed: %s", remote, error)
        return [], {}
    documents = {name for name in found if name.rpartition("/")[2] in METADATA}
    chunks = {name: stamp for name, stamp in found.items() if name not in documents}
    return [remote.read(name) or b"" for name in sorted(documents)], chunks
