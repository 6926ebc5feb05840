"""The levels of a labels element on disk, below what spatialdata writes: metadata files and chunks.

An element that spatialdata wrote for a tiny picture is given its true shapes, so that the layout and the
metadata are spatialdata's own, of whatever version; the pyramid is then built level from level.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def stretch(element: Path, shapes: Sequence[tuple[int, ...]], chunks: tuple[int, ...]) -> tuple[Path, ...]:
    """Give a written element its true shapes, its levels empty.

    Parameters
    ----------
    element
        Folder of a labels element with ``len(shapes)`` levels, of any shape.
    shapes
        Shape of every level, the finest first, axes ``([z], y, x)``.
    chunks
        Pixels of a chunk; cut where a level is smaller.

    Returns
    -------
    The folders of the levels, the finest first.
    """
    metadata_file = _first(element, "zarr.json", ".zattrs")
    metadata = json.loads(metadata_file.read_text())
    datasets = _datasets(metadata)
    levels = tuple(element / d["path"] for d in datasets)
    for dataset, level, shape in zip(datasets, levels, shapes, strict=True):
        scale = [full / here for full, here in zip(shapes[0], shape, strict=True)]
        for transformation in dataset["coordinateTransformations"]:
            if transformation["type"] == "scale":
                transformation["scale"] = scale
            else:  # of the first pixel's centre, which newer versions of ome-zarr add
                transformation["translation"] = [(s - 1) / 2 for s in scale]
        _stretch_level(level, shape, tuple(min(c, s) for c, s in zip(chunks, shape, strict=True)))
    _dump(metadata_file, metadata)
    return levels


def levels_of(element: Path) -> tuple[Path, ...]:
    """Return the folders of an element's levels, the finest first."""
    metadata = json.loads(_first(element, "zarr.json", ".zattrs").read_text())
    return tuple(element / d["path"] for d in _datasets(metadata))


def _datasets(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    attributes = metadata.get("attributes", metadata)
    multiscales = attributes.get("ome", attributes)["multiscales"]
    datasets: list[dict[str, Any]] = multiscales[0]["datasets"]
    return datasets


def _stretch_level(level: Path, shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    file = _first(level, "zarr.json", ".zarray")
    metadata = json.loads(file.read_text())
    metadata["shape"] = list(shape)
    if "chunks" in metadata:
        metadata["chunks"] = list(chunks)
    else:
        metadata["chunk_grid"]["configuration"]["chunk_shape"] = list(chunks)
    _dump(file, metadata)
    for entry in level.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)


def _first(folder: Path, *names: str) -> Path:
    return next(folder / name for name in names if (folder / name).exists())


def _dump(path: Path, value: dict[str, Any]) -> None:
    path.write_bytes(json.dumps(value, indent=2).encode())


def coarsen(fine: zarr.Array[Any], coarse: zarr.Array[Any], *, threads: int = 2) -> None:
    """Fill a level from the one below it, chunk by chunk: the pixel under the centre, ids as they are.

    The pixel ``j`` of ``n`` is the pixel ``floor((j + 1/2) * m / n)`` of ``m``: what spatialdata's own
    pyramid of labels takes, without its way through float. A chunk of the result is held, and those of the
    source that are being read.

    Parameters
    ----------
    fine, coarse
        Arrays of the same dtype and axes; ``coarse`` is written.
    threads
        Chunks written at a time.
    """
    picks = [_centres(m, n) for m, n in zip(fine.shape, coarse.shape, strict=True)]

    def fill(corner: tuple[int, ...]) -> None:
        edges = zip(corner, coarse.chunks, coarse.shape, strict=True)
        box = tuple(slice(a, min(a + c, n)) for a, c, n in edges)
        index = [pick[s] for pick, s in zip(picks, box, strict=True)]
        window = tuple(slice(int(i[0]), int(i[-1]) + 1) for i in index)
        block = np.zeros([len(i) for i in index], coarse.dtype)
        for piece in _pieces(window, fine.chunks):
            ends = [np.searchsorted(i, (p.start, p.stop)) for i, p in zip(index, piece, strict=True)]
            target = tuple(slice(*e) for e in ends)
            source = np.asarray(fine.get_basic_selection(piece))
            for axis, (i, t, p) in enumerate(zip(index, target, piece, strict=True)):
                source = source.take(i[t] - p.start, axis)
            block[target] = source
        coarse[box] = block

    corners = product(*(range(0, n, c) for n, c in zip(coarse.shape, coarse.chunks, strict=True)))
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fill, corners):
            pass


def _centres(m: int, n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return ((2 * np.arange(n, dtype=np.int64) + 1) * m) // (2 * n)


def _pieces(window: tuple[slice, ...], chunks: tuple[int, ...]) -> product[tuple[slice, ...]]:
    """Cut a window at the chunks' borders."""
    cuts = []
    for w, c in zip(window, chunks, strict=True):
        edges = [w.start, *range((w.start // c + 1) * c, w.stop, c), w.stop]
        cuts.append([slice(a, b) for a, b in pairwise(edges)])
    return product(*cuts)
