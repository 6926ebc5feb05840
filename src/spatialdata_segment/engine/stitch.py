"""The second stage: decide what stands, number it, and paint the cores from the results of their neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.measure import combine, measure, pair_counts
from spatialdata_segment.core.objects import Objects
from spatialdata_segment.core.seams import compose, decide
from spatialdata_segment.core.shards import dense
from spatialdata_segment.engine.entries import Entry, sound, write_entry
from spatialdata_segment.engine.shard import read_result, shard_path
from spatialdata_segment.methods.base import Seeds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from spatialdata_segment.core.measure import Moments, Pairs
    from spatialdata_segment.core.plan import Plan
    from spatialdata_segment.core.shards import ShardResult


class MissingCoresError(Exception):
    """Cores of another mask that a shard needs and that were not asked for."""

    def __init__(self, cores: list[int]) -> None:
        super().__init__(f"cores {cores} of the nucleus mask are not computed")
        self.cores = cores

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cores,)


@dataclass(frozen=True)
class CoreLabels:
    """Candidate ids of the whole image, composed, as entries of one core each."""

    plan: Plan
    folder: Path
    anchors: Path

    def path(self, index: int) -> Path:
        """File of one core."""
        return self.folder / f"{index:07d}.core"

    def ids(self, shard: int) -> Path:
        """File of the candidate ids of a shard's objects."""
        return self.folder / f"{shard:07d}.ids"

    def read(self, box: Box, *, partial: bool = False) -> NDArray[np.integer]:
        """Return the candidate ids of any box; 0 where a core was not computed, if that is allowed.

        Raises
        ------
        MissingCoresError
            If a core was not computed, and ``partial`` is False.
        """
        parts, missing = [], []
        for index in self.plan.touched(box):
            path, core = self.path(index), self.plan.core(index)
            if not path.exists():
                missing.append(index)
                continue
            common = core.intersect(box)
            inner = Box(*(tuple(int(i) for i in np.subtract(e, core.start)) for e in (common.start, common.stop)))
            parts.append((common, Entry(path).read("labels", inner)))
        if missing and not partial:
            raise MissingCoresError(missing)
        out = np.zeros(box.shape, np.result_type(np.int32, *(labels.dtype for _, labels in parts)))
        for common, labels in parts:
            out[common.within(box)] = labels
        return out

    def seeds(self, box: Box) -> Seeds:
        """Return the objects of a box as seeds, numbered by their anchors' order."""
        labels, ids = dense(self.read(box))
        return Seeds(labels, read_anchors(self.anchors)[ids.astype(np.int64) - 1] - np.array(box.start))


def read_anchors(path: Path) -> NDArray[np.int64]:
    """Return the ``(n, ndim)`` anchors of an entry; kept in memory."""
    status = path.stat()
    return _read_anchors(path, (status.st_mtime_ns, status.st_size, status.st_ino))


@lru_cache(maxsize=4)
def _read_anchors(path: Path, _state: tuple[int, ...]) -> NDArray[np.int64]:
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
    spans
        The parts of the plan's grid that they reach, as `Plan.span` has them.
    size
        Number of all objects of the shard.
    """

    local: NDArray[np.int32]
    anchor: NDArray[np.int64]
    spans: list[tuple[int, ...]]
    size: int
    twins: int
    adopted: int


@dataclass(frozen=True)
class Painted:
    """One composed core."""

    moments: Moments | None
    pairs: Pairs | None
    contested: int


class Boxes:
    """Windows of shards, to find those that meet a box."""

    def __init__(self, indices: Sequence[int], boxes: Sequence[Box]) -> None:
        self._indices = np.array(indices, np.int64)
        self._start = np.array([b.start for b in boxes], np.int64)
        self._stop = np.array([b.stop for b in boxes], np.int64)

    def meeting(self, box: Box) -> list[int]:
        """Return the shards whose windows share pixels with a box, in raster order."""
        meets = np.all((self._start < box.stop) & (self._stop > box.start), axis=1)
        return sorted(self._indices[meets].tolist())


@dataclass(frozen=True)
class Stitch:
    """The second stage: reads the committed results of neighbours, and paints the cores."""

    plan: Plan
    folder: Path

    def _result(self, index: int) -> ShardResult:
        return read_result(shard_path(self.folder, index), index, self.plan)

    def decide(self, shard: tuple[int, list[int]]) -> Stands:
        """Decide which objects of a shard stand, given the shards whose windows meet its own."""
        index, near = shard
        results = {i: self._result(i) for i in near}
        decision = decide(index, results)
        objects, local = results[index].objects, np.flatnonzero(decision.kept)
        plan = self.plan
        return Stands(
            local=(local + 1).astype(np.int32),
            anchor=np.ravel_multi_index(tuple(objects.anchor[local].T), plan.shape),
            spans=[tuple(s) for s in np.unique(plan.span(objects.bbox[local]), axis=0).tolist()],
            size=len(objects),
            twins=decision.twins,
            adopted=decision.adopted,
        )

    def compose(
        self,
        core: tuple[int, list[int]],
        labels: CoreLabels,
        other: CoreLabels | None,
        wide: bool,
        measured: bool,
    ) -> Painted:
        """Paint one core, given the shards whose windows meet it, and commit it, unless an earlier run did."""
        index, near = core
        box = self.plan.core(index)
        entry = sound(labels.path(index))
        if entry is None:
            painted, contested = compose(box, self._versions(box, near, labels))
            small = painted if wide else painted.astype(np.int32)
            write_entry(labels.path(index), {"labels": small}, {"contested": contested})
        else:
            painted, contested = entry.read("labels"), entry.meta["contested"]
        pairs = pair_counts(other.read(box), painted) if other is not None else None
        return Painted(measure(painted, box.start) if measured else None, pairs, contested)

    def _versions(self, core: Box, near: list[int], labels: CoreLabels) -> Any:
        for i in near:
            result = self._result(i)
            common = result.window.box.intersect(core)
            yield common, result.labels.read(common), Entry(labels.ids(i)).read("ids")


def number(
    indices: Sequence[int], decisions: Sequence[Stands], folder: Path, shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """Give what stands its ids, 1..n in raster order of the anchors; keep them, and return the anchors."""
    flat = np.concatenate([np.zeros(0, np.int64), *(d.anchor for d in decisions)])
    order = np.argsort(flat, kind="stable")
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(1, len(order) + 1)
    start = 0
    for index, d in zip(indices, decisions, strict=True):
        ids = np.zeros(d.size + 1, np.int64)
        ids[d.local] = number[start : start + len(d.local)]
        start += len(d.local)
        write_entry(folder / f"{index:07d}.ids", {"ids": ids})
    anchors = np.stack(np.unravel_index(flat[order], shape), axis=1)
    write_entry(folder / "anchors.entry", {"anchors": anchors})
    return anchors


def candidates_of(anchors: NDArray[np.int64], parts: list[Moments], measured: bool) -> tuple[Objects, Objects]:
    """Return the candidates that hold pixels, and those that hold none any more."""
    n, ndim = anchors.shape
    if not measured:
        return Objects.unmeasured(np.arange(1, n + 1), anchors), Objects.empty(ndim)
    moments = combine(parts) if parts else None
    present = np.zeros(0, np.int64) if moments is None else moments.ids
    lost = np.setdiff1d(np.arange(1, n + 1), present)
    at = anchors[lost - 1]
    covered = Objects(lost, at, np.zeros(len(lost), np.int64), at.astype(float), np.column_stack([at, at]))
    if moments is None or not len(present):
        return Objects.empty(ndim), covered
    return moments.objects(anchors[present - 1]), covered
