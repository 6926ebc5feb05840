"""Objects of consecutive planes joined into 3D objects: overlaps, partners, ids. Pure and vectorised.

The rule: pairs of objects whose IoU (shared area by the area of both together) reaches the threshold are taken
from the highest IoU down, ties from the lower id in the plane below, then the lower id above. A pair is made
where neither has a partner yet, so that every object continues at most one, and is continued by at most one.
An object without partner below starts a new 3D object. Labels never reach more than 0.5 with two objects of one
plane: above, order and ties do not matter.

Memory and time are O(objects that overlap); nothing is sized by an id.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import shapely

from spatialdata_segment.core.jit import kernel
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from spatialdata_segment.core.measure import Pairs

    Ints = NDArray[np.int64]

_ROUNDING = 1e-9
"""How far, relatively, areas of polygons may be off where they rule a pair out before it is measured."""


@dataclass(frozen=True)
class Overlaps:
    """Which objects of two consecutive planes lie over each other, and how much.

    Attributes
    ----------
    below, above
        Ids of all objects of the two planes: ascending, > 0.
    a, b
        ``(k,)`` positions in ``below`` and ``above``: the pairs, each once.
    iou
        ``(k,)`` float64, > 0: the area that they share by the area that either covers.
    """

    below: Ints
    above: Ints
    a: NDArray[np.intp]
    b: NDArray[np.intp]
    iou: NDArray[np.float64]

    @classmethod
    def of_pairs(cls, pairs: Pairs) -> Self:
        """Return those of two planes of labels, counted with the background."""
        below, a, area_below = _areas(pairs.a, pairs.count)
        above, b, area_above = _areas(pairs.b, pairs.count)
        both = (pairs.a > 0) & (pairs.b > 0)
        a, b, shared = a[both], b[both], pairs.count[both]
        return cls(below, above, a, b, shared / (area_below[a] + area_above[b] - shared))

    @classmethod
    def join(cls, below: Ints, above: Ints, parts: Iterable[PolygonOverlaps]) -> Self:
        """Return those of two planes of polygons from its parts."""
        found = list(parts)
        a, b, iou = (np.concatenate([getattr(p, n) for p in found]) for n in ("a", "b", "iou"))
        return cls(below, above, a, b, iou)


@dataclass(frozen=True)
class PolygonOverlaps:
    """Pairs of polygons that lie over each other: positions in the planes below and above, and the IoU."""

    a: NDArray[np.intp]
    b: NDArray[np.intp]
    iou: NDArray[np.float64]


def overlaps_of_polygons(
    below: shapely.STRtree, above: NDArray[np.object_], start: int, threshold: float
) -> PolygonOverlaps:
    """Measure the pairs of polygons of two planes whose IoU reaches a threshold.

    Areas and bounding boxes rule out most pairs; the others are intersected, exactly.

    Parameters
    ----------
    below
        All polygons of the plane below: valid.
    above
        Some polygons of the plane above: valid.
    start
        Position of the first of these among all of its plane.
    threshold
        Above 0, up to 1.
    """
    b, a = below.query(above)
    one, other = below.geometries[a], above[b]
    area = shapely.area(one) + shapely.area(other)
    most = np.minimum(_shared_box(one, other), np.minimum(shapely.area(one), shapely.area(other)))
    near = (most > 0) & (most >= threshold * (area - most) * (1 - _ROUNDING))
    a, b, area = a[near], b[near], area[near]
    shared = shapely.area(shapely.intersection(one[near], other[near]))
    iou = shared / (area - shared)
    keep = iou >= threshold
    return PolygonOverlaps(a[keep], b[keep] + start, iou[keep])


def partners(overlaps: Overlaps, threshold: float) -> Ints:
    """Find the object of the plane below that each object of the plane above continues.

    Parameters
    ----------
    overlaps
        Of the two planes.
    threshold
        The IoU to reach, above 0 and up to 1, inclusive; 0: none has a partner.

    Returns
    -------
    ``(len(above),)`` positions in ``below``, each at most once; -1 for none.
    """
    check_threshold(threshold)
    reach = overlaps.iou >= threshold if threshold > 0 else np.zeros(len(overlaps.iou), bool)
    a, b, iou = overlaps.a[reach], overlaps.b[reach], overlaps.iou[reach]
    order = np.lexsort((b, a, -iou))
    found: Ints = _greedy(a[order], b[order], len(overlaps.below), len(overlaps.above))
    return found


def number(planes: Sequence[Ints]) -> list[Ints]:
    """Give ids to the objects of all planes: 1..n in order of first appearance, by plane, then by old id.

    Where the first plane holds 1..n, it keeps its ids.

    Parameters
    ----------
    planes
        Of each plane, for every object in order of its old id, the position of its partner in the plane before,
        -1 for none.

    Returns
    -------
    Of each plane, the new ids in order of the old ones.
    """
    largest, before, found = 0, np.zeros(0, np.int64), []
    for partner in planes:
        is_new = partner < 0
        ids = np.empty(len(partner), np.int64)
        ids[is_new] = np.arange(largest + 1, largest + 1 + np.count_nonzero(is_new))
        ids[~is_new] = before[partner[~is_new]]
        largest += int(np.count_nonzero(is_new))
        before = ids
        found.append(ids)
    return found


def check_threshold(threshold: float) -> None:
    """Raise where a threshold is no share."""
    if isinstance(threshold, bool) or not isinstance(threshold, Real) or not 0 <= threshold <= 1:
        raise InputError(
            f"threshold={threshold!r}: expected the IoU to reach, above 0 and up to 1, like 0.5; or 0, for planes "
            "that keep distinct ids"
        )


def _areas(ids: Ints, count: Ints) -> tuple[Ints, NDArray[np.intp], Ints]:
    """Return the objects, for each pair the position of its object (-1: background), and areas."""
    if ids.max(initial=0) < 4 * len(ids):  # a table by id is then as small as the pairs
        is_there = np.zeros(int(ids.max(initial=0)) + 1, bool)
        is_there[ids] = True
        found, at = np.flatnonzero(is_there), (np.cumsum(is_there) - 1)[ids]
    else:
        found, at = np.unique(ids, return_inverse=True)
    area = np.zeros(len(found), np.int64)
    np.add.at(area, at, count)
    n_background = int(np.searchsorted(found, 1))
    return found[n_background:], at - n_background, area[n_background:]


def _shared_box(one: NDArray[np.object_], other: NDArray[np.object_]) -> NDArray[np.float64]:
    """Return the area that the bounding boxes share, pair by pair."""
    p, q = shapely.bounds(one), shapely.bounds(other)
    sides = np.minimum(p[:, 2:], q[:, 2:]) - np.maximum(p[:, :2], q[:, :2])
    area: NDArray[np.float64] = np.maximum(sides, 0).prod(axis=1)
    return area


@kernel
def _greedy(a: Any, b: Any, n_below: Any, n_above: Any) -> Any:
    partner = np.full(n_above, -1, np.int64)
    is_taken = np.zeros(n_below, np.bool_)
    for i in range(len(a)):
        if partner[b[i]] < 0 and not is_taken[a[i]]:
            partner[b[i]] = a[i]
            is_taken[a[i]] = True
    return partner
