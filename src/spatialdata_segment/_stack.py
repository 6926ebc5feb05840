"""Planes of labels or polygons joined into 3D objects, block by block: arrays in, arrays out.

Knows arrays and geometries only; elements are the business of ``_planes.py``, the rule is in ``core.planes``.
What runs at once is one task a block on dask's current scheduler; the results are sparse, so that memory is
that of the blocks in flight plus O(objects).
"""

# dask has annotations in part: its functions count as untyped
# mypy: disallow-untyped-calls=False, warn-return-any=False
from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from math import isqrt
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import dask
import dask.array as da
import numpy as np
import shapely
from dask.base import compute
from dask.delayed import delayed

from spatialdata_segment._polygons import check_threads, grouped
from spatialdata_segment.core.measure import Pairs, combine_pairs, map_labels, pair_counts
from spatialdata_segment.core.planes import Overlaps, check_threshold, number, overlaps_of_polygons, partners
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

_BLOCK = 2048
"""Pixels along a side of a block of one plane; of several, fewer, of as many voxels."""
_PLANES = 16
"""Planes whose counts are held at once, about."""
_POLYGONS = 10_000
"""Polygons of a task."""


class Stitched(NamedTuple):
    """The stitched planes: a dask array ``(z, y, x)``, not computed, and the number of 3D objects."""

    labels: da.Array
    n_objects: int


@dataclass(frozen=True)
class _Uncopied:
    """A numpy array that dask reads where it lies; of the array itself it makes a copy."""

    array: NDArray[np.integer]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def dtype(self) -> np.dtype[np.integer]:
        return self.array.dtype

    def __getitem__(self, index: Any) -> NDArray[np.integer]:
        return self.array[index]


def stitch_label_array(labels: da.Array | NDArray[np.integer], threshold: float) -> Stitched:
    """Join the objects of planes that were segmented one by one into 3D objects.

    The planes are read once to count, every 16th of them twice, and once more when the result is computed.

    Parameters
    ----------
    labels
        ``(z, y, x)`` integers, 0 background; in each plane ids of its own, sparse and below 2**63.
    threshold
        The IoU to reach, see :mod:`spatialdata_segment.core.planes`; 0: planes keep distinct ids.

    Returns
    -------
    Ids 1..n in order of first appearance (plane, then old id), uint32, or uint64 beyond.

    Raises
    ------
    InputError
        If the axes, the dtype or a label are others.
    """
    check_threshold(threshold)
    stack = _as_stack(labels)
    planes: list[Ints] = []
    found: list[Ints] = []
    for overlaps in _overlaps(stack):
        if not planes:
            planes.append(overlaps.below)
            found.append(np.full(len(overlaps.below), -1, np.int64))
        planes.append(overlaps.above)
        found.append(partners(overlaps, threshold))
    new = number(found)
    n_objects = max((int(ids.max(initial=0)) for ids in new), default=0)
    dtype = np.dtype(np.uint32 if n_objects < 2**32 else np.uint64)
    return Stitched(_relabelled(stack, list(zip(planes, new, strict=True)), dtype), n_objects)


def stitch_polygons(planes: Sequence[tuple[NDArray[np.object_], Ints]], threshold: float) -> list[Ints]:
    """Join the polygons of planes into 3D objects.

    Parameters
    ----------
    planes
        Of each plane the polygons (valid) and their ids, unique and > 0.
    threshold
        As for :func:`stitch_label_array`.

    Returns
    -------
    Of each plane, the 3D ids in the order of its polygons: 1..n in order of first appearance (plane, then id).
    """
    check_threshold(threshold)
    orders = [np.argsort(ids) for _, ids in planes]
    ordered = [(polygons[o], ids[o]) for (polygons, ids), o in zip(planes, orders, strict=True)]
    found = [np.full(len(ids), -1, np.int64) for _, ids in ordered]
    if threshold > 0:
        tasks = [_polygon_tasks(below, above, threshold) for (below, _), (above, _) in pairwise(ordered)]
        for k, parts in enumerate(compute(*tasks), 1):
            overlaps = Overlaps.join(ordered[k - 1][1], ordered[k][1], parts)
            found[k] = partners(overlaps, threshold)
    return [ids[np.argsort(o)] for ids, o in zip(number(found), orders, strict=True)]


def threads(n_jobs: int | None) -> AbstractContextManager[Any]:
    """Let dask run on so many threads; None: as it is configured."""
    if n_jobs is None:
        return nullcontext()
    check_threads(n_jobs)
    return dask.config.set(scheduler="threads", num_workers=n_jobs)


def _as_stack(labels: da.Array | NDArray[np.integer]) -> da.Array:
    """Return planes as a dask array in blocks of about the size to count in."""
    if labels.ndim != 3 or labels.dtype.kind not in "biu":
        raise InputError(
            f"labels of type {labels.dtype} with {labels.ndim} axes: expected integers with axes (z, y, x), 0 = "
            "background"
        )
    if 0 in labels.shape:
        raise InputError(f"labels of shape {labels.shape} have no pixels: expected one plane (z, y, x) or more")
    if not isinstance(labels, da.Array):
        rows = max(1, _BLOCK**2 // labels.shape[2])  # whole rows: contiguous, so that no block is copied
        return da.from_array(_Uncopied(labels), chunks=(1, rows, labels.shape[2]), name=False)
    if any(np.isnan(c).any() for c in labels.chunks):
        raise InputError("labels have chunks of unknown size; call .compute_chunk_sizes() on them first")
    side = max(1, _BLOCK // isqrt(max(labels.chunks[0])))
    z, y, x = labels.chunks
    return cast("da.Array", labels.rechunk((z, grouped(y, side), grouped(x, side))))


def _overlaps(stack: da.Array) -> Iterator[Overlaps]:
    """Give the overlaps of each plane with the next; of a lone plane with one that is empty."""
    if len(stack) == 1:
        stack = da.concatenate([stack, da.zeros_like(stack)])
    blocks = stack.to_delayed()
    depths = stack.chunks[0]
    start = 0
    for stop in range(1, len(depths) + 1):
        if sum(depths[start:stop]) >= _PLANES or stop == len(depths):
            yield from _overlaps_of_batch(blocks, start, stop)
            start = stop


def _overlaps_of_batch(blocks: NDArray[np.object_], start: int, stop: int) -> Iterator[Overlaps]:
    """Count pixels of the planes in blocks ``start`` to ``stop`` along z, each with the plane before."""
    task = delayed(_count, pure=False)
    columns = [[None, *blocks[:, y, x]] for y, x in np.ndindex(blocks.shape[1:])]
    tasks = [[task(c[k + 1], c[k]) for k in range(start, stop)] for c in columns]
    counted = [list(chain.from_iterable(column)) for column in compute(*tasks)]
    for parts in zip(*counted, strict=True):
        yield Overlaps.of_pairs(combine_pairs(parts))


def _count(block: NDArray[np.integer], before: NDArray[np.integer] | None) -> list[Pairs]:
    """Count what consecutive planes of a block share, from the last plane of the block before on."""
    planes = [*([] if before is None else before[-1:]), *block]
    return [pair_counts(a, b, background=True) for a, b in pairwise(planes)]


def _relabelled(stack: da.Array, planes: Sequence[tuple[Ints, Ints]], dtype: np.dtype[Any]) -> da.Array:
    """Return, lazily, the stack with each plane's ids replaced."""
    slabs = []
    for z0, z1 in pairwise(np.cumsum((0, *stack.chunks[0])).tolist()):
        table = delayed([(i, n, np.array_equal(i, n)) for i, n in planes[z0:z1]], traverse=False)
        meta = np.zeros((0, 0, 0), dtype)
        slabs.append(da.map_blocks(partial(_relabel, dtype=dtype), stack[z0:z1], table=table, dtype=dtype, meta=meta))
    return da.concatenate(slabs)


def _relabel(
    block: NDArray[np.integer], table: Sequence[tuple[Ints, Ints, bool]], dtype: np.dtype[Any]
) -> NDArray[np.integer]:
    if all(is_same for _, _, is_same in table):
        return block.astype(dtype, copy=False)
    planes = [map_labels(plane, ids, new, dtype) for plane, (ids, new, _) in zip(block, table, strict=True)]
    return planes[0][None] if len(planes) == 1 else np.stack(planes)


def _polygon_tasks(below: NDArray[np.object_], above: NDArray[np.object_], threshold: float) -> list[Any]:
    tree = delayed(shapely.STRtree, pure=False)(delayed(below, traverse=False))
    task = delayed(overlaps_of_polygons, pure=False)
    starts = range(0, max(1, len(above)), _POLYGONS)
    return [task(tree, delayed(above[k : k + _POLYGONS], traverse=False), k, threshold) for k in starts]
