"""Who owns an object that several shards saw, and the painting of its version across core borders.

Every object has an anchor, and the shard whose core holds it owns the object. Where the versions of
neighbours agree that is all. Where they do not (a network's rounding, a method without an exact context)
the versions of one object are known by their overlap in what both shards saw: each covers more than half
of the other. Of two owned versions the lower shard's stays; a version that nobody owns, and that no owned
object covers, is adopted by the lowest shard that sees it in its core. Contested pixels go to the first
object in raster order of the anchors. None of it depends on the order of the shards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.measure import pair_counts
from spatialdata_segment.core.shards import as_volume, volume_index

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from spatialdata_segment.core.boxes import Box
    from spatialdata_segment.core.shards import ShardObjects, ShardResult


@dataclass(frozen=True)
class Decision:
    """Which of a shard's objects stand, and what was in dispute.

    Attributes
    ----------
    kept
        ``(n,)`` bool, for the objects of the shard's window.
    twins
        Owned objects dropped because a lower shard owns the same object.
    adopted
        Objects that nobody owned.
    overlaps
        ``(k, 2)`` int64: another shard, and the label there of an object that shares pixels with a kept one and
        may be kept as well. Empty where the shards agree.
    """

    kept: NDArray[np.bool_]
    overlaps: NDArray[np.int64]
    twins: int = 0
    adopted: int = 0


def decide(index: int, results: Mapping[int, ShardResult]) -> Decision:
    """Decide the objects of shard ``index``; ``results`` holds all whose windows meet its own."""
    mine = results[index]
    objects = mine.objects
    kept = objects.owned.copy()
    orphan = objects.touches & ~objects.owned
    shared = [np.zeros((0, 3), np.int64)]
    covered = np.zeros(len(objects), np.int64)
    twin = np.zeros(len(objects), np.bool_)
    taken = np.zeros(len(objects), np.bool_)
    for other, theirs in results.items():
        common = mine.window.box.intersect(theirs.window.box)
        if other == index or common.size == 0 or not len(theirs.objects):
            continue
        if _agree(mine, theirs, common) and _agree(theirs, mine, common):
            covered[_among(objects, theirs.objects.owned, theirs)] = objects.area.max(initial=0)
            if other < index:
                taken |= _among(objects, theirs.objects.touches & ~theirs.objects.owned, theirs)
            continue
        a, b, same, count = _versions(mine, theirs, common)
        owned = theirs.objects.owned[b]
        covers = objects.owned[a] & (2 * count > theirs.objects.area[b])
        may = owned | (theirs.objects.touches[b] & ~covers)
        shared.append(np.column_stack([a, np.full(len(a), other), b + 1])[may])
        np.add.at(covered, a[owned], count[owned])
        if other < index:
            twin[a[same & owned]] = True
            taken[a[same & ~owned & theirs.objects.touches[b]]] = True
    twin &= objects.owned
    adopted = orphan & (2 * covered <= objects.area) & ~taken
    kept &= ~twin
    kept |= adopted
    pairs = np.concatenate(shared)
    return Decision(kept, pairs[kept[pairs[:, 0]], 1:], int(twin.sum()), int(adopted.sum()))


def _among(objects: ShardObjects, which: NDArray[np.bool_], theirs: ShardResult) -> NDArray[np.bool_]:
    """Tell which objects are, pixel for pixel, among ``which`` of another shard."""
    return np.isin(objects.digest, theirs.objects.digest[which])


def _agree(one: ShardResult, other: ShardResult, common: Box) -> bool:
    """Tell whether all that could be in dispute is in the other shard as well, pixel for pixel.

    If that holds both ways, every object has one owner, and the objects of one owner share no pixel with those of
    the other: in a shard, labels do not overlap.
    """
    asked = _disputable(one) & _meets(one.objects.bbox, common)
    return bool(np.isin(one.objects.digest[asked], other.objects.digest).all())


def _versions(
    mine: ShardResult, theirs: ShardResult, common: Box
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Pairs of objects that share pixels: positions in either shard, whether they are one, the pixels."""
    ours, others = mine.labels.read(common), theirs.labels.read(common)
    pairs = pair_counts(ours, others, background=True)
    a, b, count = pairs.a.astype(np.int64), pairs.b.astype(np.int64), pairs.count
    size_a = np.bincount(a, count, len(mine.objects) + 1)
    size_b = np.bincount(b, count, len(theirs.objects) + 1)
    both = (a > 0) & (b > 0)
    a, b, count = a[both], b[both], count[both]
    same = (2 * count > size_a[a]) & (2 * count > size_b[b])
    return a - 1, b - 1, same, count


def _disputable(result: ShardResult) -> NDArray[np.bool_]:
    """Objects that reach beyond the shard's core, or that lie in it and are not its own."""
    objects, core = result.objects, result.window.core
    low, high = objects.bbox[:, : core.ndim], objects.bbox[:, core.ndim :]
    leaves = ((low < core.start) | (high > core.stop)).any(axis=1)
    return np.where(objects.owned, leaves, objects.touches)


def _meets(bbox: NDArray[np.int64], box: Box) -> NDArray[np.bool_]:
    ndim = box.ndim
    meets: NDArray[np.bool_] = np.all((bbox[:, :ndim] < box.stop) & (bbox[:, ndim:] > box.start), axis=1)
    return meets


def compose(
    box: Box, versions: Iterable[tuple[Box, NDArray[np.integer], NDArray[np.integer]]]
) -> tuple[NDArray[np.integer], int]:
    """Paint the objects that stand into a box.

    Parameters
    ----------
    box
        What to paint.
    versions
        For each shard whose window meets the box: the common part, the shard's labels there, and the id
        of each of its objects (position 0 is the background), 0 for those that do not stand; all uint32 or all
        int64.

    Returns
    -------
    The ids of the pixels, of the type of the ids given (uint32 if none are), and the number of contested pixels.
    """
    out: NDArray[np.integer] | None = None
    contested = 0
    for common, labels, ids in versions:
        if out is None:
            out = np.zeros(box.shape, ids.dtype)
        if ids.any():
            at = volume_index(tuple(s.start for s in common.within(box)), 0)
            contested += int(_paint(as_volume(out), at, as_volume(labels), ids))
    return (np.zeros(box.shape, np.uint32) if out is None else out), contested


@kernel
def _paint(out: Any, at: Any, labels: Any, ids: Any) -> Any:
    contested = 0
    nz, ny, nx = labels.shape
    for z in range(nz):
        for y in range(ny):
            row = out[z + at[0], y + at[1]]
            for x in range(nx):
                s = labels[z, y, x]
                if s > 0 and ids[s] > 0:
                    now = row[x + at[2]]
                    if now != 0 and now != ids[s]:
                        contested += 1
                    if now == 0 or ids[s] < now:
                        row[x + at[2]] = ids[s]
    return contested
