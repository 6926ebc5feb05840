"""One mask of an image, from pixels to stitched candidates: shards, decisions, composed cores."""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.measure import combine, combine_pairs, measure, pair_counts
from spatialdata_segment.core.objects import Objects
from spatialdata_segment.core.seams import compose, decide
from spatialdata_segment.core.shards import dense
from spatialdata_segment.core.suppress import greedy
from spatialdata_segment.engine.entries import Entry, sound, write_entry
from spatialdata_segment.engine.shard import Failure, Job, Report, read_result, report_of, run_shard
from spatialdata_segment.errors import ShardError
from spatialdata_segment.methods.base import Seeds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from spatialdata_segment.core.measure import Moments, Pairs
    from spatialdata_segment.core.plan import Plan
    from spatialdata_segment.engine.executor import Executor

logger = logging.getLogger(__name__)


class MissingCoresError(Exception):
    """Cores of another mask that a shard needs and that were not asked for."""

    def __init__(self, cores: list[int]) -> None:
        super().__init__(f"cores {cores} of the nucleus mask are not computed")
        self.cores = cores

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cores,)


@dataclass(frozen=True)
class Mask:
    """The stitched candidates of one mask; their pixels lie on disk.

    Attributes
    ----------
    objects
        All candidates with a pixel of their own, ids 1..n in raster order of their anchors.
    covered
        Candidates that lost every pixel to others (of area 0).
    pairs
        Pixels shared with the objects of the mask before, if there is one.
    labels
        Reads candidate ids.
    evidence
        Counts of what happened at the seams.
    """

    objects: Objects
    covered: Objects
    pairs: Pairs | None
    labels: CoreLabels
    evidence: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CoreLabels:
    """Candidate ids of the whole image, composed, as entries of one core each."""

    plan: Plan
    folder: Path
    anchors: Path

    def path(self, index: int) -> Path:
        """File of one core."""
        return self.folder / f"{index:07d}.core"

    def read(self, box: Box, *, partial: bool = False) -> NDArray[np.int64]:
        """Return the candidate ids of any box; 0 where a core was not computed, if that is allowed.

        Raises
        ------
        MissingCoresError
            If a core was not computed, and ``partial`` is False.
        """
        out = np.zeros(box.shape, np.int64)
        missing = []
        for index in self.plan.touched(box):
            path, core = self.path(index), self.plan.core(index)
            if not path.exists():
                missing.append(index)
                continue
            common = core.intersect(box)
            inner = Box(*(tuple(int(i) for i in np.subtract(e, core.start)) for e in (common.start, common.stop)))
            out[common.within(box)] = Entry(path).read("labels", inner)
        if missing and not partial:
            raise MissingCoresError(missing)
        return out

    def seeds(self, box: Box) -> Seeds:
        """Return the objects of a box as seeds, numbered by their anchors' order."""
        labels, ids = dense(self.read(box))
        return Seeds(labels, _anchors(self.anchors)[ids.astype(np.int64) - 1] - np.array(box.start))


def _anchors(path: Path) -> NDArray[np.int64]:
    status = path.stat()
    return _read_anchors(path, (status.st_mtime_ns, status.st_size, status.st_ino))


@lru_cache(maxsize=4)
def _read_anchors(path: Path, _state: tuple[int, ...]) -> NDArray[np.int64]:
    return Entry(path).read("anchors")


def run_mask(
    job: Job, folder: Path, needed: Sequence[int], executor: Executor, stage: str, other: CoreLabels | None = None
) -> Mask:
    """Segment one mask in the ``needed`` shards and stitch it.

    ``other`` is the mask to count shared pixels with.
    """
    job = replace(job, folder=folder / "shards")
    if job.method.proposes:
        job = _proposed(job, folder, needed, executor, stage)
    reports = run_shards(job, needed, executor, f"{stage} shards", ".shard")
    grown = {r.index: r.window for r in reports if r.window != job.plan.window(r.index).box}
    stitch = Stitch(job, frozenset(r.index for r in reports), grown)
    generation = f"{zlib.crc32(b''.join(_crc(job.path(r.index)) for r in reports)):08x}"
    decisions = executor.map(stitch.decide, [r.index for r in reports], f"{stage} seams")
    table = _number(decisions, [r.index for r in reports], job.image.ndim)
    for index, ids in table.ids.items():
        write_entry(folder / generation / f"{index:07d}.ids", {"ids": ids})
    write_entry(folder / generation / "anchors.entry", {"anchors": table.anchor})
    labels = CoreLabels(job.plan, folder / generation, folder / generation / "anchors.entry")
    paint = partial(stitch.compose, labels=labels, other=other, wide=len(table.anchor) >= 1 << 31)
    painted = executor.map(paint, _touched(job.plan, needed, decisions), f"{stage} stitching")
    moments = combine(p.moments for p in painted) if painted else None
    objects, covered = _candidates(table, moments, job.image.ndim)
    evidence = {
        "shards": len(reports),
        "computed": sum(r.computed for r in reports),
        "again": sum(r.rounds > 1 for r in reports),
        "twins": sum(d.twins for d in decisions),
        "adopted": sum(d.adopted for d in decisions),
        "contested_px": sum(p.contested for p in painted),
        "covered": len(covered),
    }
    pairs = combine_pairs(p.pairs for p in painted if p.pairs is not None) if other is not None else None
    return Mask(objects, covered, pairs, labels, evidence)


def run_shards(job: Job, needed: Sequence[int], executor: Executor, stage: str, suffix: str) -> list[Report]:
    """Run the shards that no earlier run finished; raise when all are through and some failed."""
    assert job.folder is not None
    done: dict[int, Report] = {}
    if not job.verify:
        paths = {i: job.folder / f"{i:07d}{suffix}" for i in needed}
        done = {i: report_of(i, entry) for i in needed if (entry := sound(paths[i])) is not None}
    pending = [i for i in needed if i not in done]
    if done:
        logger.info("%s: %d of %d finished by an earlier run", stage, len(done), len(needed))
    graph, keys = shard_graph(job, pending)
    results = executor.run(graph, keys, stage, len(done))
    flat = [r.item() if isinstance(r, np.ndarray) else r for r in results]
    if failures := [r for r in flat if isinstance(r, Failure)]:
        raise shard_error(failures, len(needed))
    return sorted([*done.values(), *flat], key=lambda r: r.index)


def _touched(plan: Plan, needed: Sequence[int], decisions: Sequence[Stands]) -> list[int]:
    """Return the cores to paint: those asked for, and all that an object of theirs reaches."""
    if len(needed) == len(plan):
        return list(needed)
    ndim = len(plan.shape)
    bbox = np.concatenate([np.zeros((0, 2 * ndim), np.int64), *(d.bbox for d in decisions)])
    spans = {tuple(s) for s in np.unique(plan.span(bbox), axis=0).tolist()}
    reached = {i for s in spans for i in plan.within(s[:ndim], s[ndim:])}
    return sorted(reached.union(needed))


def shard_error(failures: list[Failure], total: int) -> ShardError:
    """Return the error that names the first of the shards that failed."""
    if missing := [f.error.cores for f in failures if isinstance(f.error, MissingCoresError)]:
        raise MissingCoresError(sorted(set().union(*missing)))
    first = min(failures, key=lambda f: f.index)
    others = f" ({len(failures) - 1} other shards failed as well)" if len(failures) > 1 else ""
    error = ShardError(
        f"shard {first.index} of {total}, core [{first.core}], failed: {type(first.error).__name__}: "
        f"{first.error}{others}. The finished shards are kept: the same call goes on from them"
    )
    error.__cause__ = first.error
    return error


def shard_graph(job: Job, pending: Sequence[int]) -> tuple[Any, list[Any]]:
    """Return a dask graph and its keys that run shards.

    The blocks come through ``map_overlap``, so that pixels shared by neighbours are read once. It cannot reach
    beyond the neighbouring core: a shard whose halo does reads its own box.
    """
    if job.maps is not None or job.source.shape[0] == 0:
        name = f"shard-{id(job)}"
        return {f"{name}-{i}": (partial(run_shard, job, i, None),) for i in pending}, [f"{name}-{i}" for i in pending]
    array = overlapped(job)
    keys = [(array.name, 0, *(int(k) for k in np.unravel_index(i, job.plan.grid))) for i in pending]
    graph: Any = array.__dask_graph__()
    return (graph.cull(keys) if keys else {}), keys


def overlapped(job: Job) -> da.Array:
    """Return the array of shard results, one element a shard, of dtype object."""
    plan = job.plan
    image = job.source.rechunk((job.source.shape[0], *plan.chunks), threshold=1 << 40)
    depth = {0: 0}
    for axis, (halo, sizes) in enumerate(zip(plan.halo, plan.chunks, strict=True), 1):
        depth[axis] = min(halo, min(sizes)) if len(sizes) > 1 else 0
    shards: da.Array = da.map_overlap(
        partial(_at_block, job),
        image,
        depth=depth,
        boundary="none",
        trim=False,
        allow_rechunk=False,
        dtype=object,
        chunks=((1,), *((1,) * n for n in plan.grid)),
        meta=np.empty((0,) * image.ndim, object),
    )
    return shards


def _at_block(job: Job, block: NDArray[Any], block_id: tuple[int, ...] | None = None) -> NDArray[Any]:
    assert block_id is not None
    index = int(np.ravel_multi_index(block_id[1:], job.plan.grid))
    out = np.empty((1,) * block.ndim, object)
    out[...] = run_shard(job, index, block)
    return out


def _crc(path: Path) -> bytes:
    return Entry(path).crc.to_bytes(4, "little")


@dataclass(frozen=True)
class Stands:
    """The objects of one shard that stand: their positions in the shard and what orders them."""

    local: NDArray[np.int64]
    anchor: NDArray[np.int64]
    bbox: NDArray[np.int64]
    area: NDArray[np.int64]
    size: int
    twins: int
    adopted: int


@dataclass(frozen=True)
class Painted:
    """One composed core."""

    moments: Moments
    pairs: Pairs | None
    contested: int


@dataclass(frozen=True)
class Stitch:
    """The second stage: reads the committed results of neighbours, and paints the cores."""

    job: Job
    needed: frozenset[int]
    grown: dict[int, Box]

    def _result(self, index: int) -> Any:
        return read_result(self.job.path(index), index, self.job.plan)

    def _window(self, index: int) -> Box:
        return self.grown.get(index) or self.job.plan.window(index).box

    def _near(self, box: Box) -> list[int]:
        """Shards whose windows meet a box; those that ran again reach farther than the plan says."""
        plan = self.job.plan
        near = self.needed.intersection(plan.touched(box.grow(plan.halo, plan.image))) | self.grown.keys()
        return sorted(i for i in near if self._window(i).intersect(box).size)

    def decide(self, index: int) -> Stands:
        """Decide which objects of a shard stand."""
        results = {i: self._result(i) for i in self._near(self._window(index))}
        decision = decide(index, results)
        objects, local = results[index].objects, np.flatnonzero(decision.kept)
        return Stands(
            local + 1, objects.anchor[local], objects.bbox[local], objects.area[local], len(objects),
            decision.twins, decision.adopted,
        )  # fmt: skip

    def compose(self, index: int, labels: CoreLabels, other: CoreLabels | None, wide: bool) -> Painted:
        """Paint one core and commit it, unless an earlier run did."""
        core = self.job.plan.core(index)
        entry = sound(labels.path(index))
        if entry is None:
            painted, contested = compose(core, self._versions(core, labels))
            small = painted if wide else painted.astype(np.int32)
            write_entry(labels.path(index), {"labels": small}, {"contested": contested})
        else:
            painted, contested = entry.read("labels"), entry.meta["contested"]
        pairs = pair_counts(other.read(core), painted) if other is not None else None
        return Painted(measure(painted, core.start), pairs, contested)

    def _versions(self, core: Box, labels: CoreLabels) -> Any:
        for i in self._near(core):
            result = self._result(i)
            common = result.window.box.intersect(core)
            ids = Entry(labels.folder / f"{i:07d}.ids").read("ids")
            yield common, result.labels.read(common), ids


@dataclass(frozen=True)
class _Table:
    ids: dict[int, NDArray[np.int64]]
    anchor: NDArray[np.int64]


def _number(decisions: Sequence[Stands], indices: Sequence[int], ndim: int) -> _Table:
    """Give what stands its ids: 1..n in raster order of the anchors."""
    anchor = np.concatenate([np.zeros((0, ndim), np.int64), *(d.anchor for d in decisions)])
    bbox = np.concatenate([np.zeros((0, 2 * ndim), np.int64), *(d.bbox for d in decisions)])
    area = np.concatenate([np.zeros(0, np.int64), *(d.area for d in decisions)])
    order = np.lexsort((*reversed(bbox.T), area, *reversed(anchor.T)))
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(1, len(order) + 1)
    ids: dict[int, NDArray[np.int64]] = {}
    start = 0
    for index, d in zip(indices, decisions, strict=True):
        ids[index] = np.zeros(d.size + 1, np.int64)
        ids[index][d.local] = number[start : start + len(d.local)]
        start += len(d.local)
    return _Table(ids, anchor[order])


def _candidates(table: _Table, moments: Moments | None, ndim: int) -> tuple[Objects, Objects]:
    """Return the candidates that hold pixels, and those that hold none any more."""
    present = np.zeros(0, np.int64) if moments is None else moments.ids
    lost = np.setdiff1d(np.arange(1, len(table.anchor) + 1), present)
    at = table.anchor[lost - 1]
    covered = Objects(lost, at, np.zeros(len(lost), np.int64), at.astype(float), np.column_stack([at, at]))
    if moments is None or not len(present):
        return Objects.empty(ndim), covered
    return moments.objects(table.anchor[present - 1]), covered


def _proposed(job: Job, folder: Path, needed: Sequence[int], executor: Executor, stage: str) -> Job:
    """Run the first phase of a proposing method, and resolve its candidates for the whole image."""
    assert job.folder is not None
    maps = folder / "maps"
    run_shards(replace(job, folder=maps), needed, executor, f"{stage} proposals", ".maps")
    entries = [Entry(maps / f"{i:07d}.maps") for i in needed]
    ndim = job.image.ndim
    anchors = np.concatenate([np.zeros((0, ndim), np.int64), *(e.read("anchors") for e in entries)])
    scores = np.concatenate([np.zeros(0), *(e.read("scores") for e in entries)])
    pairs = np.concatenate([np.zeros((0, 2 * ndim), np.int64), *(e.read("pairs") for e in entries)])
    flat = np.ravel_multi_index(tuple(anchors.T), job.plan.shape)
    order = np.argsort(flat)
    ends = [np.ravel_multi_index(tuple(p.T), job.plan.shape) for p in (pairs[:, :ndim], pairs[:, ndim:])]
    at = [np.searchsorted(flat[order], e) for e in ends]
    known = np.all([flat[order][np.minimum(a, len(flat) - 1)] == e for a, e in zip(at, ends, strict=True)], axis=0)
    edges = np.column_stack(at)[known] if len(pairs) else np.zeros((0, 2), np.int64)
    kept = greedy(scores[order], anchors[order], edges)
    path = folder / "proposals.entry"
    write_entry(path, {"anchors": anchors[order][kept]})
    return replace(job, maps=maps, seeds=partial(_points_of, path))


def _points_of(path: Path, box: Box) -> Seeds:
    anchors = _anchors(path)
    return Seeds(None, anchors[box.holds(anchors)] - np.array(box.start))
