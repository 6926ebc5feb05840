"""The second stage: decide what stands, number it, and paint the cores from the results of their neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.measure import Moments, measure, pair_counts
from spatialdata_segment.core.objects import Objects
from spatialdata_segment.core.seams import compose, decide
from spatialdata_segment.core.shards import dense, pick
from spatialdata_segment.engine.entries import Entry, write_entry
from spatialdata_segment.engine.memory import release
from spatialdata_segment.engine.shard import read_result, shard_path
from spatialdata_segment.methods.base import Seeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from spatialdata_segment.core.measure import Pairs
    from spatialdata_segment.core.plan import Plan


class MissingCoresError(Exception):
    """Cores of another mask that a shard needs and that were not asked for."""

    def __init__(self, cores: list[int]) -> None:
        super().__init__(f"cores {cores} of the nucleus mask are not computed")
        self.cores = cores

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cores,)


@dataclass(frozen=True)
class StitchedLabels:
    """Candidate ids of the whole image, painted on demand from the entries that the shards left."""

    plan: Plan
    shards: Path
    folder: Path

    def ids(self, shard: int) -> Path:
        """File of the candidate ids of a shard's objects."""
        return ids_path(self.folder, shard)

    @property
    def index(self) -> Index:
        """What was stitched."""
        return read_index(self.folder)

    def read(self, box: Box, *, partial: bool = False) -> NDArray[np.integer]:
        """Return the candidate ids of any box.

        ``partial``: where a shard was not computed, only what reaches there from others.

        Raises
        ------
        MissingCoresError
            If a shard was not computed, and ``partial`` is False.
        """
        return self.paint(box, partial=partial)[0]

    def paint(self, box: Box, *, partial: bool = False) -> tuple[NDArray[np.integer], int]:
        """Return the candidate ids of any box, and the number of its contested pixels."""
        index = self.index
        if not partial and (missing := index.lacks(self.plan.touched(box))):
            raise MissingCoresError(missing)
        return compose(box, self._versions(box, index.windows.meeting(box)))

    def _versions(self, box: Box, near: list[int]) -> Iterator[tuple[Box, NDArray[np.integer], NDArray[np.integer]]]:
        for i in near:
            result = read_result(shard_path(self.shards, i), i, self.plan)
            common = result.window.box.intersect(box)
            yield common, result.labels.read(common), Entry(self.ids(i)).read("ids")

    def seeds(self, box: Box) -> Seeds:
        """Return the objects of a box as seeds, numbered by their anchors' order. What was rejected is no seed."""
        index = self.index
        labels, ids = dense(self.read(box))
        at = ids.astype(np.int64) - 1
        kept = index.reason[at] == 0
        number = np.concatenate([[0, 0], np.cumsum(kept) * kept]).astype(np.int32)  # `pick` begins with label -1
        return Seeds(pick(labels, number), index.anchors[at[kept]] - np.array(box.start))


@dataclass(frozen=True)
class Index:
    """The shards of a stitched mask, and what the next mask must know of its candidates.

    Attributes
    ----------
    entry
        Where it lies; what is long is read when it is asked for.
    shards
        Those that were computed.
    windows
        What they show.
    """

    entry: Entry
    shards: frozenset[int]
    windows: Boxes

    @cached_property
    def anchors(self) -> NDArray[np.int32]:
        """``(n, ndim)``, of the candidates 1..n."""
        return self.entry.read("anchors")

    @cached_property
    def reason(self) -> NDArray[np.uint8]:
        """``(n,)``: why the method rejected one; 0: it did not."""
        return self.entry.read("reason")

    def lacks(self, shards: Iterable[int]) -> list[int]:
        """Return those of ``shards`` that were not computed."""
        return [i for i in shards if i not in self.shards]


def ids_path(folder: Path, shard: int) -> Path:
    """File of the candidate ids of a shard's objects."""
    return folder / f"{shard:07d}.ids"


def read_index(folder: Path) -> Index:
    """Return what was stitched; kept in memory."""
    path = folder / "index.entry"
    status = path.stat()
    return _read_index(path, (status.st_mtime_ns, status.st_size, status.st_ino))


@lru_cache(maxsize=4)
def _read_index(path: Path, _state: tuple[int, ...]) -> Index:
    entry = Entry(path)
    shards = entry.read("shards")
    return Index(entry, frozenset(shards.tolist()), Boxes(shards, entry.read("windows")))


def read_anchors(path: Path) -> NDArray[np.integer]:
    """Return the ``(n, ndim)`` anchors of an entry; kept in memory."""
    status = path.stat()
    return _read_anchors(path, (status.st_mtime_ns, status.st_size, status.st_ino))


@lru_cache(maxsize=4)
def _read_anchors(path: Path, _state: tuple[int, ...]) -> NDArray[np.integer]:
    return Entry(path).read("anchors")


@dataclass(frozen=True)
class Stands:
    """The objects of one shard that stand.

    Attributes
    ----------
    local
        ``(k,)`` int32: their labels in the shard.
    anchor
        ``(k,)`` int64: raster index of their anchors in the image.
    reason
        ``(k,)`` uint8: why the method rejects them, 0 where it does not; they stand all the same.
    spans
        The parts of the plan's grid that they reach, as `Plan.span` has them.
    size
        Number of all objects of the shard.
    overlaps
        ``(k, 2)`` int64: another shard, and the label there of an object that shares pixels with one that stands
        here, and that may stand as well.
    moments
        What was measured of the objects that stand, if it was asked for; its ids are the labels.
    """

    local: NDArray[np.int32]
    anchor: NDArray[np.int64]
    reason: NDArray[np.uint8]
    spans: list[tuple[int, ...]]
    size: int
    overlaps: NDArray[np.int64]
    moments: Moments | None
    twins: int
    adopted: int


class Boxes:
    """Windows of shards, ``(k, 2 * ndim)`` starts and stops, to find those that meet a box."""

    def __init__(self, shards: NDArray[np.int64], windows: NDArray[np.int64]) -> None:
        self._shards = shards
        self._start, self._stop = np.hsplit(windows, 2)

    def meeting(self, box: Box) -> list[int]:
        """Return the shards whose windows share pixels with a box, in raster order."""
        meets = np.all((self._start < box.stop) & (self._stop > box.start), axis=1)
        return sorted(self._shards[meets].tolist())


def decide_shard(shard: tuple[int, list[int]], plan: Plan, folder: Path, *, measured: bool) -> Stands:
    """Decide which objects of a shard stand, given the shards whose windows meet its own.

    ``measured``: tell their sizes and places as well.
    """
    index, near = shard
    results = {i: read_result(shard_path(folder, i), i, plan) for i in near}
    decision = decide(index, results)
    objects, kept = results[index].objects, np.flatnonzero(decision.kept)
    local = kept.astype(np.int32) + 1
    moments = Moments(local.astype(np.int64), *(a[kept] for a in (objects.area, objects.sums, objects.bbox)))
    return Stands(
        local=local,
        anchor=np.ravel_multi_index(tuple(objects.anchor[kept].T), plan.shape),
        reason=objects.reason[kept],
        spans=[tuple(s) for s in np.unique(plan.span(objects.bbox[kept]), axis=0).tolist()],
        size=len(objects),
        overlaps=decision.overlaps,
        moments=moments if measured else None,
        twins=decision.twins,
        adopted=decision.adopted,
    )


def are_disjoint(indices: Sequence[int], decisions: Sequence[Stands]) -> bool:
    """Tell whether no pixel belongs to two objects that stand."""
    standing = {i: d.local for i, d in zip(indices, decisions, strict=True)}
    return not any(
        np.isin(d.overlaps[d.overlaps[:, 0] == other, 1], standing[other]).any()
        for d in decisions
        for other in np.unique(d.overlaps[:, 0]).tolist()
    )


def measure_core(core: Box, labels: StitchedLabels) -> tuple[Moments, int]:
    """Measure what is left of each object where they overlap; return the number of contested pixels too."""
    painted, contested = labels.paint(core, partial=True)
    return measure(painted, core.start), contested


def count_pairs(core: Box, labels: StitchedLabels, other: StitchedLabels) -> Pairs:
    """Count the pixels of a core that each object shares with each of another mask, that one's first."""
    return pair_counts(other.read(core), labels.read(core, partial=True))


def number(
    indices: Sequence[int],
    windows: NDArray[np.int64],
    decisions: list[Stands],
    folder: Path,
    shape: tuple[int, ...],
) -> tuple[NDArray[np.int32], NDArray[np.uint8], Moments | None]:
    """Give what stands its ids, 1..n in raster order of the anchors, and keep them.

    ``decisions`` is emptied: of a large image there are many, and all of this lies in memory beside them.

    Returns
    -------
    The ``(n, ndim)`` anchors, the ``(n,)`` reasons of the method, and what the shards measured, if they did.
    """
    flat = np.concatenate([np.zeros(0, np.int64), *(d.anchor for d in decisions)])
    reason = np.concatenate([np.zeros(0, np.uint8), *(d.reason for d in decisions)])
    parts = [d.moments for d in decisions if d.moments is not None]
    standing = [(d.local, d.size) for d in decisions]
    decisions.clear()
    release()
    order = np.argsort(flat, kind="stable")
    number = np.empty(len(order), np.int64 if len(order) >= 1 << 32 else np.uint32)
    number[order] = np.arange(1, len(order) + 1, dtype=number.dtype)
    start = 0
    for shard, (local, size) in zip(indices, standing, strict=True):
        ids = np.zeros(size + 1, number.dtype)
        ids[local] = number[start : start + len(local)]
        start += len(local)
        write_entry(ids_path(folder, shard), {"ids": ids})
    del number, standing
    left, reason = flat[order], reason[order]
    moments = None
    if parts:
        area, sums, bbox = (np.concatenate([getattr(p, f) for p in parts])[order] for f in ("area", "sums", "bbox"))
        moments = Moments(np.arange(1, len(order) + 1), area, sums, bbox)
    del flat, order
    anchors = np.empty((len(left), len(shape)), np.int32)
    for axis in range(len(shape) - 1, -1, -1):  # what unravel_index does, with less beside it
        np.remainder(left, shape[axis], out=anchors[:, axis], casting="unsafe")
        left //= shape[axis]
    index: dict[str, NDArray[Any]] = {
        "shards": np.array(indices, np.int64),
        "windows": windows,
        "anchors": anchors,
        "reason": reason,
    }
    write_entry(folder / "index.entry", index)
    return anchors, reason, moments


def candidates_of(
    anchors: NDArray[np.int32], reason: NDArray[np.uint8], moments: Moments | None
) -> tuple[Objects, Objects]:
    """Return the candidates that hold pixels, and those that hold none any more."""
    n, ndim = anchors.shape
    ids = np.arange(1, n + 1)
    if moments is None:
        return Objects.unmeasured(ids, anchors, reason), Objects.empty(ndim)
    lost = np.setdiff1d(ids, moments.ids)
    at = anchors[lost - 1].astype(np.int64)
    none = np.zeros(len(lost), np.int64)
    covered = Objects(lost, at, none, at.astype(float), np.column_stack([at, at]), reason[lost - 1])
    if not len(moments):
        return Objects.empty(ndim), covered
    return replace(moments.objects(anchors[moments.ids - 1].astype(np.int64)), reason=reason[moments.ids - 1]), covered
