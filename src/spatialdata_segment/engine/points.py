"""Maps that are points with values: an entry a block, read by the boxes that the points' objects may fill."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.engine.entries import DamagedError, Entry, sound, write_entry
from spatialdata_segment.errors import ScratchError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

_INDEX = "index.entry"


def points_path(folder: Path, block: int) -> Path:
    """File of the points of a block."""
    return folder / "points" / f"{block:07d}.entry"


def write_points(folder: Path, block: int, records: NDArray[Any], boxes: NDArray[np.int64]) -> None:
    """Write the points of a block.

    Parameters
    ----------
    folder
        Of the maps.
    block
        Which.
    records
        ``(n,)`` structured, with a field "point".
    boxes
        ``(n, 2 * ndim)`` the pixels that each may fill: starts, then stops.
    """
    names = records.dtype.names or ()
    arrays = {"box": boxes.astype(np.int32).reshape(-1)}
    arrays |= {f"field_{name}": np.ascontiguousarray(records[name]).reshape(-1) for name in names}
    ndim = boxes.shape[1] // 2
    hull = [*boxes[:, :ndim].min(axis=0).tolist(), *boxes[:, ndim:].max(axis=0).tolist()] if len(boxes) else []
    write_entry(points_path(folder, block), arrays, {"n": len(records), "hull": hull})


def sound_points(folder: Path, block: int) -> bool:
    """Tell whether every byte of a block's points is as written."""
    return sound(points_path(folder, block)) is not None


def write_index(folder: Path, blocks: Iterable[int]) -> None:
    """Write down which blocks there are, and what the objects of each may fill."""
    try:
        found = [(k, Entry(points_path(folder, k)).meta["hull"]) for k in blocks]
    except DamagedError as error:
        raise ScratchError(f"{error}. Call predict() with overwrite=True, which predicts all anew") from error
    filled = [(k, hull) for k, hull in found if hull]
    hulls = np.array([hull for _, hull in filled], np.int64) if filled else np.zeros((0, 0), np.int64)
    write_entry(folder / _INDEX, {"blocks": np.array([k for k, _ in filled], np.int64), "hulls": hulls})


def read_points(folder: Path, box: Box, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the points whose objects may fill a pixel of a box, wherever they lie; ``(n,)`` structured.

    Raises
    ------
    DamagedError
        If a file is damaged or gone.
    """
    path = folder / _INDEX
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: missing") from error
    blocks, hulls = _index(path, (status.st_mtime_ns, status.st_size, status.st_ino))
    near = blocks[_meeting(hulls, box)].tolist() if len(blocks) else []
    parts = [_read_block(points_path(folder, k), box, dtype) for k in near]
    return np.concatenate([np.zeros(0, dtype), *parts])


@lru_cache(maxsize=8)
def _index(path: Path, _state: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    entry = Entry(path)
    return entry.read("blocks"), entry.read("hulls")


def _meeting(boxes: NDArray[np.int64], box: Box) -> NDArray[np.bool_]:
    meets = np.ones(len(boxes), np.bool_)
    for k, (start, stop) in enumerate(zip(box.start, box.stop, strict=True)):
        meets &= (boxes[:, k] < stop) & (boxes[:, box.ndim + k] > start)
    return meets


def _read_block(path: Path, box: Box, dtype: np.dtype[Any]) -> NDArray[Any]:
    entry = Entry(path)
    n = entry.meta["n"]
    if n == 0:
        return np.zeros(0, dtype)
    meets = _meeting(entry.read("box").reshape(n, -1), box)
    rows = np.flatnonzero(meets)
    if not len(rows):
        return np.zeros(0, dtype)
    first, end = int(rows[0]), int(rows[-1]) + 1  # points lie in raster order: of a block above or below, few are read
    out = np.empty(len(rows), dtype)
    for name in dtype.names or ():
        each = int(np.prod(dtype[name].shape))
        values = entry.read(f"field_{name}", Box((first * each,), (end * each,))).reshape(-1, *dtype[name].shape)
        out[name] = values if len(rows) == end - first else values[meets[first:end]]
    return out


def packed_dtype(dtype: np.dtype[Any]) -> str:
    """Return a structured dtype as text."""
    return json.dumps(np.lib.format.dtype_to_descr(dtype))


def unpacked_dtype(text: str) -> np.dtype[Any]:
    """Return the dtype that `packed_dtype` wrote."""
    return np.dtype([(name, kind, tuple(*shape)) for name, kind, *shape in json.loads(text)])
