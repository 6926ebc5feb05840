"""What is known of each object of a mask, as arrays: one entry an object, memory O(objects)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

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
        ``(n, ndim)`` int64 (or int32): the object's anchor pixel, axes ``([z], y, x)``, indices of the whole image.
    area
        ``(n,)`` int64: pixels (voxels).
    centroid
        ``(n, ndim)`` float64: mean pixel index; the centre of pixel 0 is 0.0 here.
    bbox
        ``(n, 2 * ndim)`` int64: the starts of all axes, then the stops (exclusive).
    reason
        ``(n,)`` uint8: code of the `core.matching.Reason` for which the method rejects it; not given: 0, for none.
    """

    ids: NDArray[np.int64]
    anchor: NDArray[np.int64]
    area: NDArray[np.int64]
    centroid: NDArray[np.float64]
    bbox: NDArray[np.int64]
    reason: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))

    def __post_init__(self) -> None:
        if not len(self.reason):
            object.__setattr__(self, "reason", np.zeros(len(self.ids), np.uint8))

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
    def unmeasured(cls, ids: NDArray[np.int64], anchor: NDArray[Any], reason: NDArray[np.uint8]) -> Self:
        """Return objects whose sizes and places are not known; areas of 1 and NaN take no memory."""
        n, ndim = anchor.shape
        area, centroid = np.broadcast_to(np.int64(1), (n,)), np.broadcast_to(np.nan, (n, ndim))
        return cls(ids, anchor, area, centroid, np.broadcast_to(np.int64(-1), (n, 2 * ndim)), reason)

    def take(self, index: NDArray[np.integer] | NDArray[np.bool_]) -> Self:
        """Return the objects at ``index`` (a mask or positions)."""
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))
