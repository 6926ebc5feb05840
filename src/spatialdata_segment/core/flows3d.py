"""From flows and cell probability of a volume to objects: `core.flows` in 3D, decided alike in every window.

The steps are those of Cellpose with ``do_3D=True`` (Stringer et al. 2021; versions 3 and 4): paths, sinks, objects that
are too large or too small, voids. There, as here, the shapes of objects are not compared with their flows, sizes count
voxels, and what is filled is closed on all sides, not in a plane. Where ours differ:

- paths do not depend on the shape of the volume, nor on the window (`core.paths3d`);
- ends are counted in all of the volume first, so that a window knows the seeds around it, and whether it shows all of
  what belongs to them;
- ties go to the seed with more paths, then to the first in raster order; there they fall as the sort has them;
- voids are filled after all sizes are known, the smaller object first, and not over objects that are kept; there in
  the order of the labels, over whatever lies inside, and sizes are compared once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spatialdata_segment.core.flows import FlowObjects, FlowRules, settle
from spatialdata_segment.core.matching import Reason
from spatialdata_segment.core.paths import LOST
from spatialdata_segment.core.paths3d import JUMP, LARGEST, flow_field, follow
from spatialdata_segment.core.shards import pick as pick_labels
from spatialdata_segment.core.sinks3d import counted, grow, take
from spatialdata_segment.core.unresolved import UNRESOLVED
from spatialdata_segment.core.voids import fill_voids, object_boxes
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spatialdata_segment.core.boxes import Box

CONTEXT = JUMP + 1
"""px around a window that paths begin in, to say at once whether they stay."""

BYTES = 17
"""A voxel, besides the maps: the most that decoding takes at a time."""


def count_ends_3d(
    maps: NDArray[np.floating], edge: NDArray[np.int64], rules: FlowRules, starts: Box | None = None
) -> NDArray[np.int32] | None:
    """Return how many paths end in each voxel of a window; None: some leave it, or lead into the unknown.

    The parameters are those of `decode_flows_3d`; ``starts`` are the voxels of the window in which paths begin, None
    all of it.
    """
    check(maps, edge)
    field = flow_field(maps[:3], maps[3], rules.cellprob_threshold)
    ends = follow(field, edge, rules.steps, starts)
    if (ends == LOST).any():
        return None
    return counted(ends, field.shape)


def decode_flows_3d(
    maps: NDArray[np.floating],
    edge: NDArray[np.int64],
    rules: FlowRules,
    counts: NDArray[np.integer] | None = None,
    before: tuple[int, ...] = (0, 0, 0),
    pick: tuple[NDArray[np.int64], ...] | None = None,
) -> FlowObjects:
    """Make objects of the maps of a window of a volume.

    Parameters
    ----------
    maps
        ``(4, z, y, x)``: flows along z, y and x, 5 a px of a path's step, and the logit of the cell probability; NaN
        where they are not known. Any floating type; float16 is not copied.
    edge
        ``(3, 2)``: for each axis, whether its low and its high side are open (1) or the volume's end (0).
    rules
        What decides; sizes count voxels, ``flow_threshold`` does not act.
    counts
        ``(z, y, x)``: how many paths, of all of the volume, end in each voxel of the window and of `SEEN` around it, as
        far as the volume goes; see `count_ends_3d`. None: those of the window alone; where one is lost nothing is sure.
    before
        Voxels ``(z, y, x)`` of ``counts`` that lie before the window.
    pick
        Planes, rows and columns of the maps whose labels are taken, where labels have another grid than the maps: it is
        on theirs that voids are filled, and that ``min_size`` counts. Sinks stay on that of the maps.

    Returns
    -------
    Objects of ``(z, y, x)`` labels, those of which the window shows a voxel; sinks may lie beyond the window. Of one
    that is rejected the sink and the reason are sure where it is complete; its voxels may be fewer in the whole volume,
    where an object that is not complete here closes around it.

    Raises
    ------
    InputError
        Shapes that do not fit, or a window of 2**31 voxels or more.
    """
    check(maps, edge)
    field = flow_field(maps[:3], maps[3], rules.cellprob_threshold)
    labels = follow(field, edge, rules.steps)
    shape = field.shape
    del field
    is_sure = counts is not None or not (labels == LOST).any()
    known = counted(labels, shape) if counts is None else np.ascontiguousarray(counts, np.int32)
    grown, seeds, areas = grow(known)
    del known
    inner = tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
    seen = take(labels, np.ascontiguousarray(grown[inner]), len(seeds))
    del grown
    shown = np.flatnonzero(seen)
    labels = _renumbered(labels, shown, len(seeds))
    complete, seeds, areas = is_sure & (seen[shown] == areas[shown]), seeds[shown] - np.array(before), areas[shown]
    reasons = np.zeros(len(seeds), np.uint8)
    reasons[areas > rules.max_size] = Reason.TOO_LARGE
    if pick is not None:
        labels = labels[np.ix_(*pick)]
        areas = np.bincount(np.maximum(labels, 0).reshape(-1), minlength=len(seeds) + 1)[1:]
    reasons[(reasons == 0) & (areas < rules.min_size)] = Reason.TOO_SMALL
    held = fill_voids(labels, object_boxes(labels, len(seeds)), areas, reasons == 0)
    settle(held, reasons == 0, complete)
    return FlowObjects(labels, seeds, complete, reasons)


def _renumbered(labels: NDArray[np.int32], shown: NDArray[np.int64], n: int) -> NDArray[np.int32]:
    """Return the labels with those at the positions ``shown`` of 1..n numbered anew, and 0 for the others."""
    if len(shown) == n:
        return labels
    table = np.zeros(n + 2, np.int32)
    table[0] = UNRESOLVED
    table[shown + 2] = np.arange(1, len(shown) + 1)
    return pick_labels(labels, table)


def check(maps: NDArray[np.floating], edge: NDArray[np.int64]) -> None:
    """Check shapes."""
    if maps.ndim != 4 or len(maps) != 4 or maps.size == 0:
        raise InputError(f"maps of shape {maps.shape}: expected (4, z, y, x), three flows and the cell probability")
    if maps.dtype.kind != "f":
        raise InputError(f"maps of type {maps.dtype}: expected floating-point numbers")
    if edge.shape != (3, 2):
        raise InputError(f"edge of shape {edge.shape}: expected (3, 2), the low and the high side of each axis")
    if maps[0].size > LARGEST or max(maps.shape[1:]) > LARGEST >> 12:
        raise InputError(f"a window of shape {maps.shape[1:]}: expected at most {LARGEST:,} voxels; use smaller shards")
