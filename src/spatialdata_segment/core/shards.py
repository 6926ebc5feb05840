"""One shard's labels made dense, and what is known of its objects."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from spatialdata_segment.core.plan import Window


@dataclass(frozen=True)
class ShardObjects:
    """The objects of one window, label 1 first; positions are indices of the whole image.

    Attributes
    ----------
    anchor
        ``(n, ndim)`` int64.
    area
        ``(n,)`` int64: pixels in the window.
    sums
        ``(n, ndim)`` int64: the sum of the pixel indices.
    bbox
        ``(n, 2 * ndim)`` int64: starts, then stops.
    owned
        ``(n,)`` bool: the anchor lies in the core.
    touches
        ``(n,)`` bool: a pixel lies in the core.
    digest
        ``(n,)`` uint64 over the pixels and the anchor: equal where two windows show the same object alike.
    reason
        ``(n,)`` uint8: code of the `core.matching.Reason` for which the method rejects it, 0 where it does not.
    """

    anchor: NDArray[np.int64]
    area: NDArray[np.int64]
    sums: NDArray[np.int64]
    bbox: NDArray[np.int64]
    owned: NDArray[np.bool_]
    touches: NDArray[np.bool_]
    digest: NDArray[np.uint64]
    reason: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.area)

    @classmethod
    def of(
        cls,
        labels: NDArray[np.int32],
        anchor: NDArray[np.int64] | None,
        window: Window,
        reason: NDArray[np.uint8] | None = None,
    ) -> Self:
        """Measure dense labels ``1..n``; without anchors an object's is its pixel nearest its centroid."""
        n = int(labels.max(initial=0)) if anchor is None else len(anchor)
        volume, start = as_volume(labels), (0,) * (3 - labels.ndim) + window.box.start
        low, high = volume_index(window.core.start, 0), volume_index(window.core.stop, 1)
        area, sums, bbox, touches, digest = _summary(volume, n, np.array(start), low, high)
        here = slice(3 - labels.ndim, 3)
        if anchor is None:
            anchor = _nearest(volume, area, sums, bbox, np.array(start))[:, here]
        anchor = np.ascontiguousarray(anchor, np.int64)
        return cls(
            anchor=anchor,
            area=area,
            sums=(sums + area[:, None] * bbox[:, :3])[:, here],
            bbox=np.column_stack([bbox[:, :3][:, here], bbox[:, 3:][:, here]]),
            owned=window.core.holds(anchor),
            touches=touches,
            digest=_with_points(digest, anchor),
            reason=np.zeros(n, np.uint8) if reason is None else reason,
        )

    def take(self, index: NDArray[np.integer] | NDArray[np.bool_]) -> Self:
        """Return the objects at ``index`` (a mask or positions)."""
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Return the objects of all parts, one after the other."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))


@dataclass(frozen=True)
class ShardResult:
    """What one shard found: the labels of its window and their objects."""

    index: int
    window: Window
    labels: Labels
    objects: ShardObjects


class Labels:
    """Labels of a box that can be read in part; here from memory."""

    def __init__(self, box: Box, array: NDArray[np.int32]) -> None:
        self.box = box
        self._array = array

    def read(self, box: Box) -> NDArray[np.integer]:
        """Return the labels of ``box``, which lies inside."""
        return self._array[box.within(self.box)]


def as_volume(array: NDArray[Any]) -> NDArray[Any]:
    """Return ``(y, x)`` as ``(1, y, x)``; ``(z, y, x)`` as it is."""
    return np.ascontiguousarray(array if array.ndim == 3 else array[None])


def volume_index(index: tuple[int, ...], fill: int) -> NDArray[np.int64]:
    """Return ``([z], y, x)`` as ``(z, y, x)``, with ``fill`` where there is no z."""
    return np.array((fill,) * (3 - len(index)) + tuple(index), np.int64)


def dense(labels: NDArray[np.integer]) -> tuple[NDArray[np.int32], NDArray[np.integer]]:
    """Give the labels that occur new numbers, 1..n in ascending order.

    Returns
    -------
    int32 labels of the same shape, and the ``(n,)`` labels that they had. Negative ones are kept as -1.
    """
    top = int(labels.max(initial=0))
    if top <= 4 * labels.size + 1024:
        present = np.zeros(top + 1, np.bool_)
        _mark(labels.reshape(-1), present)
        present[0] = False
        values = np.flatnonzero(present).astype(labels.dtype)
        lut = np.zeros(top + 1, np.int32)
        lut[values] = np.arange(1, len(values) + 1, dtype=np.int32)
        return _renumber(labels, lut), values
    values, inverse = np.unique(labels, return_inverse=True)
    out = np.where(values > 0, np.cumsum(values > 0), np.where(values < 0, -1, 0)).astype(np.int32)
    return out[inverse].reshape(labels.shape), values[values > 0]


def pick(labels: NDArray[np.int32], table: NDArray[Any]) -> NDArray[Any]:
    """Return ``table[labels + 1]``, in one pass: its first entry is that of the label -1."""
    out = np.empty(labels.shape, table.dtype)
    _pick(np.ascontiguousarray(labels).reshape(-1), table, out.reshape(-1))
    return out


@kernel
def _pick(flat: Any, table: Any, out: Any) -> Any:
    for i in range(flat.size):
        out[i] = table[flat[i] + 1]


@kernel
def _mark(flat: Any, present: Any) -> Any:
    for i in range(flat.size):
        if flat[i] > 0:
            present[flat[i]] = True


def _renumber(labels: NDArray[np.integer], lut: NDArray[np.int32]) -> NDArray[np.int32]:
    out = np.empty(labels.shape, np.int32)
    _look_up(np.ascontiguousarray(labels).reshape(-1), lut, out.reshape(-1))
    return out


@kernel
def _look_up(flat: Any, lut: Any, out: Any) -> Any:
    for i in range(flat.size):
        out[i] = lut[flat[i]] if flat[i] > 0 else (0 if flat[i] == 0 else -1)


@kernel
def _mixed(value: Any) -> Any:
    """Spread the bits of an uint64 (the finalizer of MurmurHash3)."""
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))


@kernel
def _with_points(digest: Any, points: Any) -> Any:
    out = digest.copy()
    for i in range(len(points)):
        mixed = np.uint64(0)
        for k in range(points.shape[1]):
            mixed = _mixed(mixed + np.uint64(points[i, k]))
        out[i] += mixed
    return out


@kernel
def _summary(labels: Any, n: Any, start: Any, low: Any, high: Any) -> Any:
    """Area, coordinate sums (from each bbox start), bbox, contact with the core, digest, of labels 1..n."""
    nz, ny, nx = labels.shape
    area = np.zeros(n, np.int64)
    sums = np.zeros((n, 3), np.int64)
    bbox = np.empty((n, 6), np.int64)
    bbox[:, :3] = np.iinfo(np.int64).max
    bbox[:, 3:] = -1
    touches = np.zeros(n, np.bool_)
    digest = np.zeros(n, np.uint64)
    for z in range(nz):
        gz = z + start[0]
        for y in range(ny):
            gy = y + start[1]
            inside = low[0] <= gz < high[0] and low[1] <= gy < high[1]
            x = 0
            while x < nx:
                s = labels[z, y, x]
                first = x
                x += 1
                if s <= 0:
                    continue
                while x < nx and labels[z, y, x] == s:
                    x += 1
                i = s - 1
                length = x - first
                a, b = first + start[2], x + start[2]
                area[i] += length
                digest[i] += _mixed(_mixed(_mixed(_mixed(np.uint64(gz)) + np.uint64(gy)) + np.uint64(a)) + np.uint64(b))
                sums[i, 0] += length * gz
                sums[i, 1] += length * gy
                sums[i, 2] += (a + b - 1) * length // 2
                bbox[i, 0] = min(bbox[i, 0], gz)
                bbox[i, 1] = min(bbox[i, 1], gy)
                bbox[i, 2] = min(bbox[i, 2], a)
                bbox[i, 3] = max(bbox[i, 3], gz + 1)
                bbox[i, 4] = max(bbox[i, 4], gy + 1)
                bbox[i, 5] = max(bbox[i, 5], b)
                if inside and a < high[2] and b > low[2]:
                    touches[i] = True
    for i in range(n):
        for k in range(3):
            sums[i, k] -= area[i] * bbox[i, k]
    return area, sums, bbox, touches, digest


@kernel
def _nearest(labels: Any, area: Any, sums: Any, bbox: Any, start: Any) -> Any:
    """Each object's pixel nearest its centroid, the first in raster order where several are."""
    nz, ny, nx = labels.shape
    n = len(area)
    best = np.full(n, np.inf)
    out = np.zeros((n, 3), np.int64)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                s = labels[z, y, x]
                if s <= 0:
                    continue
                i = s - 1
                total = 0.0
                for k in range(3):
                    at = (z, y, x)[k] + start[k] - bbox[i, k]
                    d = float(area[i] * at - sums[i, k])
                    total += d * d
                if total < best[i]:
                    best[i] = total
                    out[i, 0], out[i, 1], out[i, 2] = z + start[0], y + start[1], x + start[2]
    return out
