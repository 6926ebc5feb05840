"""Candidates that were kept, and labels, as HDF5, for pipelines that read such files."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import zarr

from spatialdata_segment._polygons import as_planes, ndim_of
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.engine.entries import DamagedError, Entry
from spatialdata_segment.engine.points import points_path, unpacked_dtype
from spatialdata_segment.errors import MissingError, ScratchError, require

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dask.array as da
    import xarray as xr
    from numpy.typing import NDArray

_ROWS = 4096
_CHUNK = {2: 1024, 3: 128}


def export_candidates(maps: str | Path, path: str | Path, *, mask: str = "cell") -> Path:
    """Write the candidates that `predict` kept into an HDF5 file, block by block.

    Parameters
    ----------
    maps
        Folder that `predict` wrote with `StarDist`.
    path
        File to write.
    mask
        "cell" or "nucleus".

    Returns
    -------
    ``path``: data sets ``points`` ``(n, ndim)`` int32, pixels ``([z], y, x)``; ``probabilities`` ``(n,)``,
    ``distances`` ``(n, n_rays)`` and, if there are classes, ``classes`` ``(n, n_classes + 1)``, float32.

    Raises
    ------
    MissingError
        If there are no candidates of that mask.
    ScratchError
        If a file of theirs is damaged or gone; what was at ``path`` stays.
    """
    folder = Path(maps) / mask
    said = zarr.open_group(folder, mode="r").attrs if (folder / "index.entry").is_file() else {}
    if not said.get("sparse"):
        raise MissingError(f"no candidates in {folder}: expected maps that predict() made with StarDist")
    dtype = unpacked_dtype(str(said["dtype"]))
    names = {"point": "points", "prob": "probabilities", "dist": "distances", "classes": "classes"}
    with _written(Path(path)) as file:
        for name in dtype.names or ():
            kind, shape = dtype[name].base, dtype[name].shape
            rows: dict[str, Any] = {"maxshape": (None, *shape), "chunks": (_ROWS, *shape), "compression": "lzf"}
            file.create_dataset(names[name], (0, *shape), kind, **rows)
        try:
            for block in Entry(folder / "index.entry").read("blocks").tolist():
                entry = Entry(points_path(folder, block))
                for name in dtype.names or ():
                    found, data = entry.read(f"field_{name}").reshape(-1, *dtype[name].shape), file[names[name]]
                    data.resize(len(data) + len(found), axis=0)
                    data[len(data) - len(found) :] = found
        except DamagedError as error:
            raise ScratchError(
                f"maps in {folder} cannot be read: {error}. Call predict() again with the same arguments: it predicts "
                "anew what is damaged, and keeps the rest"
            ) from error
    return Path(path)


def export_labels(labels: NDArray[np.integer] | da.Array | xr.DataArray | xr.DataTree, path: str | Path) -> Path:
    """Write labels into an HDF5 file, data set ``labels`` ``([z], y, x)``, in their own dtype, chunk by chunk.

    Parameters
    ----------
    labels
        A labels element, such as ``sdata["segmentation_cell_labels"]``, of several scales the finest; or an array
        ``([z], y, x)``.
    path
        File to write.

    Returns
    -------
    ``path``.

    Raises
    ------
    InputError
        Other axes, or no integers.
    """
    planes = as_planes(labels)
    array = planes if ndim_of(labels) == 3 else planes[0]
    chunks = tuple(max(min(_CHUNK[array.ndim], n), 1) for n in array.shape)
    with _written(Path(path)) as file:
        data = file.create_dataset("labels", array.shape, array.dtype, chunks=chunks, compression="lzf")
        for at in np.ndindex(*(-(-n // c) for n, c in zip(array.shape, chunks, strict=True))):
            start = tuple(i * c for i, c in zip(at, chunks, strict=True))
            box = Box(start, tuple(min(a + c, n) for a, c, n in zip(start, chunks, array.shape, strict=True)))
            data[box.slices] = np.asarray(array[box.slices])
    return Path(path)


@contextmanager
def _written(path: Path) -> Iterator[Any]:
    """Open an HDF5 file to write, which has its name once it is whole."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with require("h5py", "stardist").File(temporary, "w") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
