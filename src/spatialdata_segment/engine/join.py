"""Objects of consecutive planes joined into 3D objects: after the seams, from sparse counts, by `core.planes`.

What the shards left stays as it is: a table says which 3D object each object of a plane is part of. Objects that
the method rejects join nothing, and stay candidates of their own. Memory is O(objects).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.matching import Reason
from spatialdata_segment.core.measure import Moments, combine, combine_pairs, pair_counts
from spatialdata_segment.core.planes import Overlaps, partners
from spatialdata_segment.core.shards import dense, pick
from spatialdata_segment.engine.entries import Entry, write_entry
from spatialdata_segment.engine.stitch import StitchedLabels
from spatialdata_segment.methods.base import Seeds
from spatialdata_segment.methods.planes import Planes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from spatialdata_segment.core.measure import Pairs
    from spatialdata_segment.core.plan import Plan
    from spatialdata_segment.engine.executor import Executor
    from spatialdata_segment.methods.base import ImageInfo, Method

    Ints = NDArray[np.int64]


@dataclass(frozen=True)
class JoinedLabels(StitchedLabels):
    """Ids of 3D objects: those of the planes' objects, looked up in a table.

    Attributes
    ----------
    planes
        The objects of the planes.
    """

    planes: StitchedLabels

    def paint(self, box: Box, *, partial: bool = False) -> tuple[NDArray[np.integer], int]:
        """Return the ids of any box, and the number of pixels that the planes' objects contested."""
        labels, contested = self.planes.paint(box, partial=partial)
        return read_table(self.folder)[labels], contested

    def seeds_of_planes(self, box: Box) -> Seeds:
        """Return the planes' objects of a box as seeds, without those of a 3D object that was rejected."""
        labels, ids = dense(self.planes.read(box))
        at = ids.astype(np.int64)
        kept = self.index.reason[read_table(self.folder)[at].astype(np.int64) - 1] == 0
        number = np.concatenate([[0, 0], np.cumsum(kept) * kept]).astype(np.int32)  # `pick` begins with label -1
        return Seeds(pick(labels, number), self.planes.index.anchors[at[kept] - 1] - np.array(box.start))


class Rule(NamedTuple):
    """What decides: the IoU to reach, above 0 and up to 1, and the voxels that a 3D object must have."""

    threshold: float
    least: float


def rule_of(method: Method, image: ImageInfo) -> Rule | None:
    """Return by what rule the planes of a method are joined; None where they are not, or it has none."""
    if not isinstance(method, Planes) or not method.joins:
        return None
    return Rule(method.plane.stitch_threshold or 0.0, method.least_size(image))


class Joined(NamedTuple):
    """What became of the objects of the planes.

    Attributes
    ----------
    labels
        Reads ids 1..n, in raster order of the anchors.
    anchors, reason
        ``(n, 3)``, that of the object in its first plane; ``(n,)``.
    moments
        Of those that hold pixels.
    open
        By id: cores that were not computed and may change the object.
    """

    labels: JoinedLabels
    anchors: NDArray[np.int32]
    reason: NDArray[np.uint8]
    moments: Moments
    open: dict[int, list[int]]


def join_planes(
    planes: StitchedLabels,
    moments: Moments,
    rule: Rule,
    cores: Sequence[Box],
    executor: Executor,
    stage: str,
) -> Joined:
    """Join the objects of planes.

    Parameters
    ----------
    planes
        Ids of objects that lie in one plane each, 1..n in raster order of their anchors.
    moments
        Of those that hold pixels.
    rule
        What decides.
    cores
        Boxes that hold every pixel of an object.
    """
    index = planes.index
    counted = executor.map(partial(count_planes, labels=planes), cores, f"{stage} planes")
    overlaps = _overlaps(combine_pairs(counted), moments, index.reason == 0)
    partner = partners(overlaps, rule.threshold)
    first, table = _numbered(partner)
    joined = combine([Moments(table[moments.ids].astype(np.int64), moments.area, moments.sums, moments.bbox)])
    anchors, reason = index.anchors[first], index.reason[first]
    at = joined.ids - 1
    reason[at[(joined.area < rule.least) & (reason[at] == Reason.KEPT)]] = Reason.TOO_SMALL
    folder = planes.folder / f"joined-{rule.threshold!r}-{rule.least!r}"
    shards = np.array(sorted(index.shards), np.int64)
    windows = index.entry.read("windows")
    arrays = {"shards": shards, "windows": windows, "anchors": anchors, "reason": reason, "table": table}
    write_entry(folder / "index.entry", arrays)
    labels = JoinedLabels(planes.plan, planes.shards, folder, planes)
    return Joined(labels, anchors, reason, joined, _open(overlaps, rule.threshold, moments, planes, table))


def count_planes(core: Box, labels: StitchedLabels) -> Pairs:
    """Count the pixels that objects of a core share with those of the plane before, that one's first."""
    start = (max(core.start[0] - 1, 0), *core.start[1:])
    found = labels.read(Box(start, core.stop), partial=True)
    return pair_counts(found[:-1], found[1:])


def _overlaps(pairs: Pairs, moments: Moments, is_fine: NDArray[np.bool_]) -> Overlaps:
    """Return which objects lie over each other; all planes at once, for ids tell the planes."""
    n = len(is_fine)
    area = np.zeros(n + 1, np.int64)
    area[moments.ids] = moments.area
    fine = is_fine[pairs.a - 1] & is_fine[pairs.b - 1]
    a, b, shared = pairs.a[fine], pairs.b[fine], pairs.count[fine]
    ids = np.arange(1, n + 1)
    return Overlaps(ids, ids, a - 1, b - 1, shared / (area[a] + area[b] - shared))


def _numbered(partner: Ints) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Return the positions of the objects that continue none, and the number of the 3D object of each id."""
    n = len(partner)
    start = np.where(partner < 0, np.arange(n), partner)
    while not np.array_equal(further := start[start], start):
        start = further
    is_first = partner < 0
    table: NDArray[Any] = np.zeros(n + 1, np.uint32 if n < 1 << 32 else np.uint64)
    table[1:] = np.cumsum(is_first)[start]
    return np.flatnonzero(is_first), table


def _open(
    overlaps: Overlaps, threshold: float, moments: Moments, planes: StitchedLabels, table: NDArray[Any]
) -> dict[int, list[int]]:
    """Return, by id, the cores that were not computed and that may change a 3D object.

    Who is joined with whom is decided among all that overlap enough, directly or through others: none of these must
    reach, in its own plane, the one before or the next, into a core that is not known.
    """
    plan, index = planes.plan, planes.index
    fine = moments.take(index.reason[moments.ids - 1] == 0)
    if len(index.shards) == len(plan) or not len(fine):
        return {}
    spans, which = np.unique(plan.span(_with_neighbours(fine.bbox, plan)), axis=0, return_inverse=True)
    lacking = [frozenset(index.lacks(plan.within(tuple(s[:3]), tuple(s[3:])))) for s in spans.tolist()]
    reach, n = overlaps.iou >= threshold, len(overlaps.below)
    edges = (np.ones(int(reach.sum()), np.bool_), (overlaps.a[reach], overlaps.b[reach]))
    part = connected_components(coo_array(edges, shape=(n, n)), directed=False)[1]
    missing: dict[int, set[int]] = {}
    has_none = np.array([not cores for cores in lacking])
    which = which.reshape(-1)
    for at in np.flatnonzero(~has_none[which]).tolist():
        missing.setdefault(int(part[fine.ids[at] - 1]), set()).update(lacking[which[at]])
    touched = np.flatnonzero(np.isin(part, list(missing)))
    return {int(table[at + 1]): sorted(missing[int(part[at])]) for at in touched.tolist()}


def _with_neighbours(bbox: Ints, plan: Plan) -> Ints:
    wide = bbox.copy()
    wide[:, 0] = np.maximum(bbox[:, 0] - 1, 0)
    wide[:, 3] = np.minimum(bbox[:, 3] + 1, plan.shape[0])
    return wide


def read_table(folder: Path) -> NDArray[Any]:
    """Return the 3D object of each object of a plane; kept in memory."""
    path = folder / "index.entry"
    status = path.stat()
    return _read_table(path, (status.st_mtime_ns, status.st_size, status.st_ino))


@lru_cache(maxsize=4)
def _read_table(path: Path, _state: tuple[int, ...]) -> NDArray[Any]:
    return Entry(path).read("table")
