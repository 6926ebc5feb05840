"""What is known of each object of a mask, as arrays: one entry an object, memory O(objects)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Objects:
    """Stitched objects of one mask, in order of their ids.

    Attributes
    ----------
    ids
        ``(n,)`` int64, ascending, unique, > 0: the object's label.
    anchor
        ``(n, ndim)`` int64: the object's anchor pixel, axes ``([z], y, x)``, indices of the whole image.
    area
        ``(n,)`` int64: pixels (voxels).
    centroid
        ``(n, ndim)`` float64: mean pixel index; the centre of pixel 0 is 0.0 here.
    bbox
        ``(n, 2 * ndim)`` int64: the starts of all axes, then the stops (exclusive).
    """

    ids: NDArray[np.int64]
    anchor: NDArray[np.int64]
    area: NDArray[np.int64]
    centroid: NDArray[np.float64]
    bbox: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return int(self.anchor.shape[1])

    @classmethod
    def empty(cls, ndim: int) -> Self:
        """Return no object at all."""
        i, f = np.int64, np.float64
        return cls(
            np.zeros(0, i), np.zeros((0, ndim), i), np.zeros(0, i), np.zeros((0, ndim), f), np.zeros((0, 2 * ndim), i)
        )

    @classmethod
    def unmeasured(cls, ids: NDArray[np.int64], anchor: NDArray[np.int64]) -> Self:
        """Return objects of which only ids and anchors are known; areas of 1 and NaN take no memory."""
        n, ndim = anchor.shape
        area = np.broadcast_to(np.int64(1), (n,))
        return cls(ids, anchor, area, np.broadcast_to(np.nan, (n, ndim)), np.broadcast_to(np.int64(-1), (n, 2 * ndim)))

    def take(self, index: NDArray[np.integer] | NDArray[np.bool_]) -> Self:
        """Return the objects at ``index`` (a mask or positions)."""
        return type(self)(self.ids[index], self.anchor[index], self.area[index], self.centroid[index], self.bbox[index])
