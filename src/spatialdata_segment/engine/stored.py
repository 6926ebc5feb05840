"""Images as zarr arrays, on disk or elsewhere: boxes read straight from there, and pixels in memory put on disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

from spatialdata_segment.engine.arrays import arrays_of, folder_of
from spatialdata_segment.engine.entries import scratch_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spatialdata_segment.core.boxes import Box

logger = logging.getLogger(__name__)

_LIGHT = 200_000, 4_000
"""Bytes of a graph without pixels, at most, and for each of its chunks."""
_CHUNK = {2: (1024, 1024), 3: (32, 256, 256)}
"""Pixels along ``([z], y, x)`` of a chunk that is put down, at most."""


@dataclass(frozen=True)
class Stored:
    """Channels of an array ``(c, [z], y, x)``. A small box costs dask more than its pixels do.

    Attributes
    ----------
    array
        All channels.
    channels
        The indices of those wanted, in order.
    """

    array: zarr.Array[Any]
    channels: tuple[int, ...]

    def fits(self, chunks: tuple[int, ...]) -> bool:
        """Tell whether each stored chunk lies in one block of that shape, so that none is read twice."""
        stored = (self.array.shards or self.array.chunks)[1:]
        return all(c % s == 0 or s >= n for c, s, n in zip(chunks, stored, self.array.shape[1:], strict=True))

    def read(self, box: Box) -> NDArray[Any]:
        """Return the pixels of a box, ``(c, [z], y, x)``."""
        first = min(self.channels, default=0)
        if self.channels == tuple(range(first, first + len(self.channels))):
            return np.asarray(self.array[(slice(first, first + len(self.channels)), *box.slices)])
        return np.concatenate([np.asarray(self.array[(slice(c, c + 1), *box.slices)]) for c in self.channels])


def folders_of(pixels: da.Array) -> set[Path]:
    """Return the folders of the arrays on disk that a lazy image is read from, as far as they can be told."""
    return {folder_of(array) for array in arrays_of(pixels) if isinstance(array.store, LocalStore)}


def is_carried(pixels: da.Array) -> bool:
    """Tell whether the tasks of a lazy image would carry its pixels to workers, or cannot be sent at all."""
    from distributed.protocol.pickle import dumps

    carried: list[int] = []
    try:
        rest = dumps(pixels.__dask_graph__(), buffer_callback=lambda b: carried.append(b.raw().nbytes))
    except Exception:  # noqa: BLE001 (whatever a graph holds that cannot be pickled)
        return True
    limit: int = _LIGHT[0] + _LIGHT[1] * pixels.npartitions
    return len(rest) + sum(carried) > limit


def put_down(pixels: da.Array, folder: Path, n_jobs: int) -> da.Array:
    """Write an image ``(c, [z], y, x)`` into a folder, from this process, and return it as read from there.

    Raises
    ------
    ScratchError
        If the disk is full or the folder cannot be written.
    """
    chunks = (1, *(min(c, n) for c, n in zip(_CHUNK[pixels.ndim - 1], pixels.shape[1:], strict=True)))
    logger.info("%d bytes of pixels are put down in %s, where workers read them", pixels.nbytes, folder)
    try:
        array = zarr.create_array(
            folder,
            shape=pixels.shape,
            chunks=chunks,
            dtype=pixels.dtype,
            compressors=[BloscCodec(cname="lz4", clevel=1)],
            overwrite=True,
        )
        lazy = pixels.rechunk(chunks, threshold=1 << 40)
        da.store([lazy], [array], lock=False, scheduler="threads", num_workers=n_jobs)  # type: ignore[list-item]
    except OSError as error:
        raise scratch_error(folder, error, int(pixels.nbytes)) from error
    read: da.Array = da.from_zarr(zarr.open_array(folder, mode="r"))
    return read
