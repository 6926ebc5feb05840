"""Suppression of star-convex polygons in one window: what is certain there, and which pairs are left to be resolved.

StarDist keeps candidates from the highest score down and drops those that overlap one that is kept. Such a chain has no
end; but most of it is decided close by. A candidate is kept for certain where all that could drop it are seen and
dropped, and dropped for certain where one that is kept for certain overlaps it. The rest is resolved once for the whole
image (`core.suppress`), from the pairs of candidates that are both uncertain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.near import make_grid, near, put
from spatialdata_segment.core.star_overlap import ASK, exceeds, overlaps

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from spatialdata_segment.core.stars import Stars

DROPPED, KEPT, OPEN = 0, 1, 2
_EDGES = 1 << 16


@dataclass(frozen=True)
class Undecided:
    """What a window says of its candidates.

    Attributes
    ----------
    state
        ``(n,)`` int8: `DROPPED` or `KEPT` for certain, or `OPEN`.
    edges
        ``(m, 2)`` int64: positions of two open candidates of which only one may stay; complete for those of the core.
    """

    state: NDArray[np.int8]
    edges: NDArray[np.int64]


def by_score(points: NDArray[np.integer], scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the order of suppression: from the highest score down, equal ones in raster order."""
    return np.lexsort((*reversed(points.T), -np.asarray(scores, np.float64)))


def suppress_stars(
    stars: Stars,
    order: NDArray[np.int64],
    boxes: NDArray[np.int64],
    informed: NDArray[np.bool_],
    core: NDArray[np.bool_],
    threshold: float,
    area_of: Callable[[NDArray[np.int64], NDArray[np.int64]], float],
) -> Undecided:
    """Decide what a window can.

    Parameters
    ----------
    stars
        The candidates.
    order
        See `by_score`.
    boxes
        ``(n, 4)`` their extents; two whose boxes do not meet do not overlap.
    informed
        ``(n,)`` all that could drop it are among the candidates.
    core
        ``(n,)`` the pairs that it is in are wanted; such a candidate must be informed.
    threshold
        Share of the smaller polygon above which two overlap too much.
    area_of
        Returns the area that Clipper finds for the intersection of two polygons ``(n_rays, 2)`` of whole numbers.
    """
    n = len(order)
    state, edges = np.zeros(n, np.int8), []
    grid, found = make_grid(boxes), np.empty(n, np.int64)
    fields, limit = stars.fields, np.float32(threshold)
    asked, said = np.empty(max(n, 1), np.int64), np.empty(max(n, 1), np.bool_)
    buffer = np.empty((max(_EDGES, 2 * n), 2), np.int64)
    at, n_asked = 0, 0
    while at < n:
        here, j, m = _go_on(
            at, order, fields, boxes, informed, core, limit, state, grid, found, asked, said, n_asked, buffer
        )
        edges.append(buffer[:m].copy())
        if j >= 0:
            i = order[here]
            n_asked = n_asked if here == at else 0
            least = min(stars.area[i] + 1e-10, stars.area[j] + 1e-10)
            asked[n_asked], said[n_asked] = j, exceeds(area_of(stars.corners[j], stars.corners[i]), least, limit)
            n_asked += 1
        else:
            n_asked = 0
        at = here
    return Undecided(state, np.concatenate([np.zeros((0, 2), np.int64), *edges]))


@kernel
def _go_on(
    first: int,
    order: Any,
    stars: Any,
    boxes: Any,
    informed: Any,
    core: Any,
    threshold: Any,
    state: Any,
    grid: Any,
    found: Any,
    asked: Any,
    said: Any,
    n_asked: int,
    edges: Any,
) -> Any:
    """Decide from a place in the order on, until Clipper must be asked or the edges fill their room.

    Returns
    -------
    The place to go on from, the candidate to ask about or -1, and the number of edges.
    """
    m = 0
    for at in range(first, len(order)):
        i = order[at]
        n = near(grid, boxes, i, found)
        if m + n > len(edges):
            return at, -1, m
        is_dropped, new = False, m
        for wanted in (KEPT, OPEN):
            if is_dropped or (wanted == OPEN and not informed[i]):
                break
            for k in range(n):
                j = found[k]
                if state[j] != wanted:
                    continue
                answer = overlaps(stars, j, i, threshold)  # the one that drops is first: Clipper tells them apart
                if answer == ASK:
                    known = -1
                    if at == first:
                        for a in range(n_asked):
                            if asked[a] == j:
                                known = int(said[a])
                    if known < 0:
                        return at, j, m
                    answer = known
                if answer:
                    if wanted == KEPT:
                        is_dropped = True
                        break
                    edges[new, 0], edges[new, 1] = j, i
                    new += 1
                    if not core[i]:
                        break
        if is_dropped:
            state[i] = DROPPED
            continue
        state[i] = KEPT if informed[i] and new == m else OPEN
        if core[i]:
            m = new
        put(grid, boxes, i)
    return len(order), -1, m
