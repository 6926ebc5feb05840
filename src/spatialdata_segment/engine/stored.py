"""Boxes of an image that is a zarr array on disk, read straight from there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

    from spatialdata_segment.core.boxes import Box


@dataclass(frozen=True)
class Stored:
    """Channels of an array ``(c, [z], y, x)`` on disk. A small box costs dask more than its pixels do.

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
        """Tell whether each chunk on disk lies in one block of that shape, so that none is read twice."""
        stored = (self.array.shards or self.array.chunks)[1:]
        return all(c % s == 0 or s >= n for c, s, n in zip(chunks, stored, self.array.shape[1:], strict=True))

    def read(self, box: Box) -> NDArray[Any]:
        """Return the pixels of a box, ``(c, [z], y, x)``."""
        first = min(self.channels, default=0)
        if self.channels == tuple(range(first, first + len(self.channels))):
            return np.asarray(self.array[(slice(first, first + len(self.channels)), *box.slices)])
        return np.concatenate([np.asarray(self.array[(slice(c, c + 1), *box.slices)]) for c in self.channels])
