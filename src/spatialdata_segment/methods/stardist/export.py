"""Candidates that were kept, and labels, as HDF5, for pipelines that read such files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.engine.entries import Entry
from spatialdata_segment.engine.points import points_path, unpacked_dtype
from spatialdata_segment.errors import MissingError, require

if TYPE_CHECKING:
    import dask.array as da

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
    """
    folder = Path(maps) / mask
    said = zarr.open_group(folder, mode="r").attrs if (folder / "index.entry").is_file() else {}
    if not said.get("sparse"):
        raise MissingError(f"no candidates in {folder}: expected maps that predict() made with StarDist")
    dtype = unpacked_dtype(str(said["dtype"]))
    names = {"point": "points", "prob": "probabilities", "dist": "distances", "classes": "classes"}
    with require("h5py", "stardist").File(path, "w") as file:
        for name in dtype.names or ():
            kind, shape = dtype[name].base, dtype[name].shape
            rows: dict[str, Any] = {"maxshape": (None, *shape), "chunks": (_ROWS, *shape), "compression": "lzf"}
            file.create_dataset(names[name], (0, *shape), kind, **rows)
        for block in Entry(folder / "index.entry").read("blocks").tolist():
            entry = Entry(points_path(folder, block))
            for name in dtype.names or ():
                found, data = entry.read(f"field_{name}").reshape(-1, *dtype[name].shape), file[names[name]]
                data.resize(len(data) + len(found), axis=0)
                data[len(data) - len(found) :] = found
    return Path(path)


def export_labels(labels: da.Array | np.ndarray[Any, Any], path: str | Path) -> Path:
    """Write labels ``([z], y, x)`` into an HDF5 file, data set ``labels``, in their own dtype, chunk by chunk.

    ``labels``: the array of a labels element, such as ``sdata["segmentation_cell_labels"].data``.
    """
    chunks = tuple(min(_CHUNK[labels.ndim], n) for n in labels.shape)
    with require("h5py", "stardist").File(path, "w") as file:
        data = file.create_dataset("labels", labels.shape, labels.dtype, chunks=chunks, compression="lzf")
        for at in np.ndindex(*(-(-n // c) for n, c in zip(labels.shape, chunks, strict=True))):
            start = tuple(i * c for i, c in zip(at, chunks, strict=True))
            box = Box(start, tuple(min(a + c, n) for a, c, n in zip(start, chunks, labels.shape, strict=True)))
            data[box.slices] = np.asarray(labels[box.slices])
    return Path(path)
