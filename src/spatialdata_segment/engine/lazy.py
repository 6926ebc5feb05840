"""Labels as a lazy array: the same shards, decisions and painting, with results passed on in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from spatialdata_segment.core.measure import map_labels
from spatialdata_segment.core.seams import Decision, compose, decide
from spatialdata_segment.engine.mask import overlapped
from spatialdata_segment.engine.shard import Failure, Job, shard_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from spatialdata_segment.core.plan import Plan
    from spatialdata_segment.core.shards import ShardResult


def lazy_labels(job: Job) -> da.Array:
    """Return uint64 labels with the plan's cores as chunks; an id is the anchor's raster index plus 1.

    A chunk needs the shards whose windows meet its core, and to decide on their objects the neighbours of
    these. Of an object that is owned farther away the core's own shard has seen the whole, and paints it.
    """
    plan = job.plan
    shards = overlapped(job)
    token = tokenize(shards.name)
    decided, painted = f"decide-{token}", f"labels-{token}"
    near = [sorted(plan.touched(_reach(plan, i))) for i in range(len(plan))]
    graph: dict[Any, Any] = {}
    for i, others in enumerate(near):
        results = [(shards.name, 0, *_at(plan, j)) for j in others]
        graph[decided, i] = (_decide, i, results)
        graph[painted, *_at(plan, i)] = (_paint, plan, i, results, [(decided, j) for j in others])
    layers = HighLevelGraph.from_collections(painted, graph, dependencies=[shards])  # type: ignore[list-item]
    return da.Array(layers, painted, plan.chunks, dtype=np.uint64)


def _at(plan: Plan, index: int) -> tuple[int, ...]:
    return tuple(int(k) for k in np.unravel_index(index, plan.grid))


def _reach(plan: Plan, index: int) -> Any:
    """Return the box of all cores whose windows may meet the window of a shard."""
    return plan.core(index).grow(tuple(2 * h for h in plan.halo), plan.image)


def _results(blocks: Sequence[NDArray[Any]], total: int) -> dict[int, ShardResult]:
    items = [b.item() for b in blocks]
    if failures := [r for r in items if isinstance(r, Failure)]:
        raise shard_error(failures, total)
    return {r.index: r for r in items}


def _decide(index: int, blocks: Sequence[NDArray[Any]]) -> Decision:
    return decide(index, _results(blocks, len(blocks)))


def _paint(plan: Plan, index: int, blocks: Sequence[NDArray[Any]], decisions: Sequence[Decision]) -> NDArray[np.uint64]:
    core, versions, kept, is_any_rejected = plan.core(index), [], [np.zeros(0, np.int64)], False
    results = _results(blocks, len(plan))
    owners = {i: plan.core(i) for i in results}
    for decision, (i, result) in zip(decisions, results.items(), strict=True):
        stands = decision.kept
        if i == index:
            far = ~np.any([o.holds(result.objects.anchor) for o in owners.values()], axis=0)
            stands = stands | (far & result.objects.touches)
        ids = np.zeros(len(result.objects) + 1, np.int64)
        ids[1:][stands] = np.ravel_multi_index(tuple(result.objects.anchor[stands].T), plan.shape) + 1
        accepted = result.objects.reason == 0
        kept.append(ids[1:][stands & accepted])
        is_any_rejected |= not accepted.all()
        common = result.window.box.intersect(core)
        if common.size:
            versions.append((common, result.labels.read(common), ids))
    painted, _ = compose(core, versions)
    if is_any_rejected:  # erased and not left out: the pixels that they took from others are nobody's
        known = np.unique(np.concatenate(kept))
        return map_labels(painted, known, known, np.dtype(np.uint64))
    return painted.astype(np.uint64)
