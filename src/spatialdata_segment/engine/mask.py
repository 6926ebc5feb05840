"""One mask of an image, from pixels to stitched candidates: shards, decisions, ids."""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.measure import combine, combine_pairs
from spatialdata_segment.core.objects import Objects
from spatialdata_segment.core.suppress import greedy
from spatialdata_segment.engine.entries import Entry, sound, write_entry
from spatialdata_segment.engine.executor import shared
from spatialdata_segment.engine.join import join_planes, rule_of
from spatialdata_segment.engine.maps import FAR, predict_maps
from spatialdata_segment.engine.memory import release
from spatialdata_segment.engine.proposals import of_joined, with_unseen
from spatialdata_segment.engine.shard import (
    Failure,
    Job,
    Report,
    report_of,
    run_proposal,
    run_shard,
    run_tally,
    shard_error,
)
from spatialdata_segment.engine.stitch import (
    Boxes,
    MissingCoresError,
    Stands,
    StitchedLabels,
    are_disjoint,
    candidates_of,
    count_pairs,
    decide_shard,
    measure_core,
    number,
    read_anchors,
)
from spatialdata_segment.engine.tally import Tallies
from spatialdata_segment.errors import ClusterError, ScratchError
from spatialdata_segment.methods.base import Seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from spatialdata_segment.core.measure import Pairs
    from spatialdata_segment.core.plan import Plan
    from spatialdata_segment.engine.executor import Executor

logger = logging.getLogger(__name__)

_WAITING_BYTES = 24e6
"""Pixels of blocks that may wait for their neighbours to be read, about."""


@dataclass(frozen=True)
class Mask:
    """The stitched candidates of one mask; their pixels lie on disk.

    Attributes
    ----------
    objects
        All candidates with a pixel of their own, ids 1..n in raster order of their anchors.
    covered
        Candidates that have no pixel of their own (of area 0): all are others'.
    pairs
        Pixels shared with the objects of the mask before, if there is one.
    labels
        Reads candidate ids.
    evidence
        Counts of what happened at the seams.
    places
        The same by shard, where there is something: how often one ran ("again"), "twins", "adopted".
    open
        Of 3D objects that were joined of planes, by id: cores that were not computed and may change the object.
    proposals
        Entry with the anchors of the candidates that were proposed and stayed, their scores, and what
        `Candidates.columns` says of them; None where the method proposes none. Of planes that were joined see
        `proposals.of_joined`.
    """

    objects: Objects
    covered: Objects
    pairs: Pairs | None
    labels: StitchedLabels
    evidence: dict[str, int] = field(default_factory=dict)
    places: dict[str, dict[int, int]] = field(default_factory=dict)
    open: dict[int, list[int]] = field(default_factory=dict)
    proposals: Path | None = None

    def judged(self) -> Mask:
        """Return the mask without what is known of its objects."""
        none = Objects.empty(len(self.labels.plan.shape))
        return replace(self, objects=none, covered=none, pairs=None)


def run_mask(
    job: Job,
    folder: Path,
    needed: Sequence[int],
    executor: Executor,
    stage: str,
    other: StitchedLabels | None = None,
    *,
    measured: bool = True,
) -> Mask:
    """Segment one mask in the ``needed`` shards and stitch it.

    ``other`` is the mask to count shared pixels with. Without ``measured`` the sizes and places of the objects
    are left out, where nobody asks for them.
    """
    shards = folder / "shards"
    job = replace(job, folder=shards)
    around = _around(job.plan, needed) if job.method.tallies else needed
    if job.maps is None and (job.method.maps_first or job.method.proposes or job.method.tallies):
        size = int(np.prod([max(c) for c in job.plan.chunks]))
        far = FAR if job.method.proposes else 1  # others look farther in pixels
        job = replace(job, maps=predict_maps(job, folder / "maps", around, size, executor, stage, far))
    if job.method.proposes:
        job = _proposed(job, folder, needed, executor, stage)
        shards /= f"{Entry(_proposals_path(folder)).crc:08x}"  # where a region grows others may stay, and are painted
        job = replace(job, folder=shards)
    if job.method.tallies:
        job = _tallied(job, folder, around, executor, stage)
    reports = run_shards(job, needed, executor, f"{stage} shards")
    release()
    indices = [r.index for r in reports]
    boxes = np.array([[*r.window.start, *r.window.stop] for r in reports], np.int64)
    windows = Boxes(np.array(indices, np.int64), boxes)
    generation = folder / f"{zlib.crc32(b''.join(_crc(job.path(i)) for i in indices)):08x}"
    rule = rule_of(job.method, job.image)
    decide = partial(decide_shard, plan=job.plan, folder=shards, measured=measured or rule is not None)
    decisions = executor.map(decide, [(r.index, windows.meeting(r.window)) for r in reports], f"{stage} seams")
    disjoint, cores = are_disjoint(indices, decisions), _touched(job.plan, needed, decisions)
    twins, adopted = sum(d.twins for d in decisions), sum(d.adopted for d in decisions)
    places = {
        "again": {r.index: r.rounds for r in reports if r.rounds > 1},
        "twins": {i: d.twins for i, d in zip(indices, decisions, strict=True) if d.twins},
        "adopted": {i: d.adopted for i, d in zip(indices, decisions, strict=True) if d.adopted},
    }
    anchors, reason, moments = number(indices, boxes, decisions, generation, job.plan.shape)
    labels = StitchedLabels(job.plan, shards, generation)
    contested = 0
    if not disjoint:  # what is left of an object is known from its pixels alone
        found = executor.map(partial(measure_core, labels=labels), cores, f"{stage} sizes")
        moments, contested = combine(m for m, _ in found), sum(n for _, n in found)
    evidence = {
        "shards": len(reports),
        "computed": sum(r.computed for r in reports),
        "again": sum(r.rounds > 1 for r in reports),
        "twins": twins,
        "adopted": adopted,
        "contested_px": contested,
    }
    unknown: dict[int, list[int]] = {}
    proposals, seen = _proposals_path(folder) if job.method.proposes else None, anchors
    if rule is not None:
        assert moments is not None
        labels, anchors, reason, moments, unknown = join_planes(labels, moments, rule, cores, executor, stage)
        proposals = None if proposals is None else of_joined(proposals, labels)
    objects, covered = candidates_of(anchors, reason, moments)
    if proposals is not None and moments is not None:
        covered = with_unseen(covered, len(anchors), seen, proposals, job.plan.shape)
    if rule is not None:
        evidence["objects_of_planes"] = len(seen) + len(objects) + len(covered) - len(anchors)
    del anchors, reason, moments, seen
    evidence["covered"] = len(covered)
    pairs = None
    if other is not None:
        count = partial(count_pairs, labels=labels, other=other)
        pairs = combine_pairs(executor.map(count, cores, f"{stage} matching"))
    release()
    return Mask(objects, covered, pairs, labels, evidence, places, unknown, proposals)


def run_shards(
    job: Job, needed: Sequence[int], executor: Executor, stage: str, run: Callable[[Job, int], Any] | None = None
) -> list[Report]:
    """Run the shards that no earlier run finished; raise when all are through and some failed.

    ``run`` is what runs for each shard, in place of `run_shard`; it reads for itself.
    """
    assert job.folder is not None
    done: dict[int, Report] = {}
    if not job.verify:
        done = {i: report_of(i, entry) for i in needed if (entry := sound(job.path(i))) is not None}
    pending = [i for i in needed if i not in done]
    job = replace(job, turns=executor.turns(len(job.devices) if job.on_device and job.devices[0] != "cpu" else None))
    if done:
        logger.info("%s: %d of %d finished by an earlier run", stage, len(done), len(needed))
    try:
        flat = _run_pending(job, pending, executor, stage, len(done), len(needed), run)
    except ClusterError as error:
        if not job.kept:
            raise
        raise ClusterError(f"{error}. Finished shards are kept: the same call goes on from them") from error
    if failures := [r for r in flat if isinstance(r, Failure)]:
        if missing := [f.error.cores for f in failures if isinstance(f.error, MissingCoresError)]:
            raise MissingCoresError(sorted(set().union(*missing)))
        raise shard_error(failures, len(needed), kept=job.kept)
    return sorted([*done.values(), *flat], key=lambda r: r.index)


def _run_pending(
    job: Job,
    pending: Sequence[int],
    executor: Executor,
    stage: str,
    before: int,
    total: int,
    run: Callable[[Job, int], Any] | None,
) -> list[Any]:
    if run is None and not job.reads_itself:
        return _by_blocks(job, pending, executor, stage, before, total)
    alone, flying = partial(run or run_alone, job), executor.in_flight
    return executor.map(alone, pending, stage, before, at_once=flying, on_device=job.on_device)


def run_alone(job: Job, index: int) -> Any:
    """Run a shard that reads its own box."""
    return run_shard(job, index, None)


def _by_blocks(
    job: Job, pending: Sequence[int], executor: Executor, stage: str, before: int, total: int
) -> list[Report | Failure]:
    """Run shards on blocks that come through ``map_overlap``."""
    flat: list[Report | Failure] = []
    array = overlapped(job)
    for strip in _strips(job, pending):
        graph, keys = shard_graph(array, job.plan, strip)
        try:
            done = before + len(flat)
            flying = executor.in_flight
            results = executor.run(graph, keys, stage, done, total, at_once=flying, on_device=job.on_device)
        except (ScratchError, ClusterError):
            raise
        except Exception as error:  # noqa: BLE001 (a block that cannot be read: each shard reads its own box)
            logger.warning("%s: %s; reading shard by shard", stage, error)
            results = executor.map(partial(run_alone, job), strip, stage, on_device=job.on_device)
        flat += [r.item() if isinstance(r, np.ndarray) else r for r in results]
    return flat


def _strips(job: Job, pending: Sequence[int]) -> list[list[int]]:
    """Group the shards into strips along the first axis, one to be run after the other.

    Blocks wait in memory for the neighbours that share their pixels: two rows of them, so that the width of a
    row is what an image of any size must not decide. Blocks at a strip's border are read twice.
    """
    assert job.source is not None
    plan = job.plan
    core = float(np.prod([max(c) for c in plan.chunks]))
    block = core * job.source.shape[0] * job.source.dtype.itemsize
    across = len(plan.grid) - 1
    width = max(4, int((_WAITING_BYTES / (2 * block)) ** (1 / across)) - 2)
    at = np.stack(np.unravel_index(np.array(pending, np.int64), plan.grid), axis=1)
    strips: dict[tuple[int, ...], list[int]] = {}
    for index, strip in zip(pending, (at[:, 1:] // width).tolist(), strict=True):
        strips.setdefault(tuple(strip), []).append(index)
    return [strips[key] for key in sorted(strips)]


def _touched(plan: Plan, needed: Sequence[int], decisions: Sequence[Stands]) -> list[Box]:
    """Return the cores that hold a pixel of an object: those asked for, and all that one of theirs reaches."""
    if len(needed) == len(plan):
        return [plan.core(i) for i in needed]
    ndim = len(plan.shape)
    spans = {span for d in decisions for span in d.spans}
    reached = {i for s in spans for i in plan.within(s[:ndim], s[ndim:])}
    return [plan.core(i) for i in sorted(reached.union(needed))]


def shard_graph(array: da.Array, plan: Plan, pending: Sequence[int]) -> tuple[Any, list[Any]]:
    """Return the part of the graph of `overlapped` that runs some shards, and their keys."""
    keys = [(array.name, 0, *(int(k) for k in np.unravel_index(i, plan.grid))) for i in pending]
    graph: Any = array.__dask_graph__()
    return (graph.cull(keys) if keys else {}), keys


def overlapped(job: Job) -> da.Array:
    """Return the array of shard results, one element a shard, of dtype object.

    The blocks come through ``map_overlap``, so that pixels shared by neighbours are read once. It cannot reach
    beyond the neighbouring core: a shard whose halo does reads its own box.
    """
    assert job.source is not None
    plan = job.plan
    image = job.source.rechunk((job.source.shape[0], *plan.chunks), threshold=1 << 40)
    depth = {0: 0}
    read = zip(plan.halo, job.method.reach(job.image), plan.chunks, strict=True)
    for axis, (halo, reach, sizes) in enumerate(read, 1):
        depth[axis] = min(halo + reach, min(sizes)) if len(sizes) > 1 and not job.method.reads_parts else 0
    shards: da.Array = da.map_overlap(
        _at_block,
        image,
        job=shared(job),
        depth=depth,
        boundary="none",
        trim=False,
        allow_rechunk=False,
        dtype=object,
        chunks=((1,), *((1,) * n for n in plan.grid)),
        meta=np.empty((0,) * image.ndim, object),
    )
    return shards


def _at_block(block: NDArray[Any], job: Job, block_id: tuple[int, ...] | None = None) -> NDArray[Any]:
    assert block_id is not None
    index = int(np.ravel_multi_index(block_id[1:], job.plan.grid))
    out = np.empty((1,) * block.ndim, object)
    out[...] = run_shard(job, index, block)
    return out


def _crc(path: Path) -> bytes:
    return Entry(path).crc.to_bytes(4, "little")


def _proposed(job: Job, folder: Path, needed: Sequence[int], executor: Executor, stage: str) -> Job:
    """Gather the candidates of all shards from their maps, and resolve them for the whole image."""
    proposals = replace(job, folder=folder / "proposals")
    run_shards(proposals, needed, executor, f"{stage} proposals", run_proposal)
    entries = [Entry(proposals.path(i)) for i in needed]
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
    path = _proposals_path(folder)
    arrays = {"anchors": anchors[order][kept], "scores": scores[order][kept]}
    write_entry(path, {**arrays, **_columns(entries, order[kept])})
    return replace(job, seeds=partial(_points_of, path))


def _around(plan: Plan, needed: Sequence[int]) -> Sequence[int]:
    """Return the shards whose windows meet those of some shards."""
    if len(needed) == len(plan):
        return needed
    twice = tuple(2 * h for h in plan.halo)
    return sorted({j for i in needed for j in plan.touched(plan.core(i).grow(twice, plan.image))})


def _tallied(job: Job, folder: Path, around: Sequence[int], executor: Executor, stage: str) -> Job:
    """Gather what all shards count."""
    counts = replace(job, folder=folder / "tallies")
    assert counts.folder is not None
    reports = run_shards(counts, around, executor, f"{stage} tallies", run_tally)
    return replace(job, tallies=Tallies.of(reports, folder / "tallies.entry", counts.folder))


def _proposals_path(folder: Path) -> Path:
    return folder / "proposals.entry"


def _columns(entries: Sequence[Entry], chosen: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return the columns of some of the candidates of all shards."""
    names = entries[0].names("column_") if entries else []
    return {n: np.concatenate([e.read(n) for e in entries])[chosen] for n in names}


def _points_of(path: Path, box: Box) -> Seeds:
    anchors = read_anchors(path)  # in raster order
    rows = slice(*np.searchsorted(anchors[:, 0], (box.start[0], box.stop[0])).tolist())
    near = anchors[rows]
    return Seeds(None, near[box.holds(near)] - np.array(box.start))
