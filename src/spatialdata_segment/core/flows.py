"""From flows and cell probability to objects: the decoding of Cellpose, decided alike in every window.

The steps are those of Cellpose (Stringer et al. 2021; its version 3 on the CPU): paths, sinks, then what is wrong
with an object: too large, a shape that its flows do not fit, too small; then holes. What a window cannot know
is found, not guessed: the paths that leave it, and the pixels that paths from beyond may reach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spatialdata_segment.core.heat import flow_errors, object_boxes
from spatialdata_segment.core.holes import fill_holes
from spatialdata_segment.core.matching import Reason
from spatialdata_segment.core.paths import LOST, flow_field, follow, reached, widened
from spatialdata_segment.core.sinks import GROWTH, SEES, sinks
from spatialdata_segment.core.unresolved import UNRESOLVED

if TYPE_CHECKING:
    from numpy.typing import NDArray

Follow = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""What follows paths: `core.paths.follow`, or the same elsewhere."""

CONTEXT = SEES + GROWTH + 3
"""px that the surroundings of a sink must be known for."""


@dataclass(frozen=True)
class FlowRules:
    """What decides.

    Attributes
    ----------
    cellprob_threshold
        Pixels above it have a path.
    flow_threshold
        Objects whose flows are farther than this from those of their shape are rejected; None: none are. In 2D.
    steps
        Of a path.
    min_size
        px (voxels); smaller objects are rejected.
    max_size
        px (voxels); larger objects are rejected.
    """

    cellprob_threshold: float = 0.0
    flow_threshold: float | None = 0.4
    steps: int = 200
    min_size: int = 15
    max_size: float = float("inf")


@dataclass(frozen=True)
class FlowObjects:
    """The objects of a window.

    Attributes
    ----------
    labels
        ``([z], y, x)`` int32: 0 background, 1..n objects (some of which may have no pixel), -1 what belongs to
        something that the window does not show.
    sinks
        ``(n, 2)`` or ``(n, 3)``: pixel of the window to which most paths of each object lead.
    complete
        ``(n,)`` bool: the object is what the whole image would give.
    reasons
        ``(n,)`` uint8 `Reason`: why the object is rejected, 0 where it is not.
    """

    labels: NDArray[np.int32]
    sinks: NDArray[np.int64]
    complete: NDArray[np.bool_]
    reasons: NDArray[np.uint8]


def decode_flows(
    maps: NDArray[np.floating],
    edge: NDArray[np.int64],
    rules: FlowRules,
    pick: tuple[NDArray[np.int64], ...] | None = None,
    follow: Follow = follow,
) -> FlowObjects:
    """Make objects of the maps of a window.

    Parameters
    ----------
    maps
        ``(3, y, x)``: flows along y and x, 5 a px of a path's step, and the logit of the cell probability; NaN
        where they are not known.
    edge
        ``(2, 2)``: for each axis, whether its low and its high side are open (1) or the image's end (0).
    rules
        What decides.
    pick
        Rows and columns of the maps whose labels are taken, where labels have another grid than the maps: it is on
        theirs that holes are filled, and that ``min_size`` counts. Sinks stay on that of the maps.
    follow
        Follows the paths.
    """
    maps = np.ascontiguousarray(maps, np.float32)
    field = flow_field(maps[:2], maps[2], rules.cellprob_threshold)
    ends = follow(field, edge, rules.steps)
    labels, seeds = sinks(ends)
    complete = np.ones(len(seeds), np.bool_)
    unknown = np.isnan(maps[2])
    hidden = None
    if edge.any() or unknown.any():
        unsure = widened(reached(field, edge), SEES)
        complete = ~widened(unsure, GROWTH)[tuple(seeds.T)]
        hidden = (ends == LOST) | unknown | ((labels == 0) & (ends >= 0) & unsure.reshape(-1)[np.maximum(ends, 0)])
    boxes = object_boxes(labels, len(seeds))
    areas = np.bincount(labels.reshape(-1), minlength=len(seeds) + 1)[1:]
    reasons = np.zeros(len(seeds), np.uint8)
    if rules.flow_threshold is not None:
        judged = boxes.copy()
        judged[areas > rules.max_size, 1] = 0
        reasons[flow_errors(labels, judged, maps[:2] / np.float32(5)) > rules.flow_threshold] = Reason.FLOW_ERROR
    reasons[areas > rules.max_size] = Reason.TOO_LARGE
    if pick is not None:
        labels = labels[np.ix_(*pick)]
        hidden = None if hidden is None else hidden[np.ix_(*pick)]
        boxes = object_boxes(labels, len(seeds))
        areas = np.bincount(labels.reshape(-1), minlength=len(seeds) + 1)[1:]
    reasons[(reasons == 0) & (areas < rules.min_size)] = Reason.TOO_SMALL
    if hidden is not None:
        labels[hidden & (labels == 0)] = UNRESOLVED
    held = fill_holes(labels, boxes, areas, reasons == 0)
    settle(held, reasons == 0, complete)
    return FlowObjects(labels, seeds, complete, reasons)


def settle(held: NDArray[np.int64], kept: NDArray[np.bool_], complete: NDArray[np.bool_]) -> None:
    """Write which objects are complete once holes are filled.

    Not those that hold something that is unsure; nor what is rejected and inside of something unsure.

    Parameters
    ----------
    held
        ``(k, 2)`` pairs of an object and what lies in its holes: another (1..n), or a label below 0.
    kept, complete
        ``(n,)`` of the objects.
    """
    outer, inner = held[:, 0] - 1, np.maximum(held[:, 1], 1) - 1
    unsure = (held[:, 1] < 0) | ~complete[inner]
    inside = (held[:, 1] > 0) & ~kept[inner] & ~complete[outer]
    complete[outer[unsure]] = False
    complete[inner[inside]] = False
