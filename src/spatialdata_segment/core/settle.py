"""Suppression of star-convex objects in one window: what is certain there, and which pairs are left to be resolved.

StarDist keeps candidates from the highest score down and drops those that overlap one that is kept. Such a chain has no
end; but most of it is decided close by. A candidate is kept for certain where all that could drop it are seen and
dropped, and dropped for certain where one that is kept for certain overlaps it. The rest is resolved once for the whole
image (`core.suppress`), from the pairs of candidates that are both uncertain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba.extending import overload

from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.near import make_grid, near, put
from spatialdata_segment.core.polyhedra_overlap import overlaps as polyhedra_overlap
from spatialdata_segment.core.star_overlap import ASK, YES
from spatialdata_segment.core.star_overlap import overlaps as stars_overlap

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

DROPPED, KEPT, OPEN = 0, 1, 2
_EDGES = 1 << 16
_N_STARS = 7
"""Fields of `Stars`; `Polyhedra` have another number."""


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


def settle(
    shapes: tuple[Any, ...],
    order: NDArray[np.int64],
    boxes: NDArray[np.int64],
    informed: NDArray[np.bool_],
    core: NDArray[np.bool_],
    threshold: float,
    ask: Callable[[int, int], bool],
) -> Undecided:
    """Decide what a window can.

    Parameters
    ----------
    shapes
        The candidates: fields of `Stars` or of `Polyhedra`.
    order
        See `by_score`.
    boxes
        ``(n, 2 * ndim)`` their extents; two whose boxes do not meet do not overlap.
    informed
        ``(n,)`` all that could drop it are among the candidates.
    core
        ``(n,)`` the pairs that it is in are wanted; such a candidate must be informed.
    threshold
        Share of the smaller object above which two overlap too much.
    ask
        Tells whether two do, the more probable first, where the kernels cannot.
    """
    n = len(order)
    state, edges = np.zeros(n, np.int8), []
    grid, found = make_grid(boxes), np.empty(n, np.int64)
    whose, answer = np.full(n, -1, np.int64), np.zeros(n, np.int8)
    buffer = np.empty((max(_EDGES, 2 * n), 2), np.int64)
    at, limit = 0, np.float32(threshold)
    while at < n:
        at, j, m = _go_on(at, order, shapes, boxes, informed, core, limit, state, grid, found, whose, answer, buffer)
        edges.append(buffer[:m].copy())
        if j >= 0:
            i = int(order[at])
            whose[j], answer[j] = i, ask(int(j), i)
    return Undecided(state, np.concatenate([np.zeros((0, 2), np.int64), *edges]))


def judge(shapes: Any, i: int, j: int, threshold: Any) -> int:
    """Tell whether two objects overlap too much, the more probable first; for kernels."""
    raise NotImplementedError


@overload(judge)
def _judge(shapes: Any, i: Any, j: Any, threshold: Any) -> Any:
    overlaps = stars_overlap if len(shapes) == _N_STARS else polyhedra_overlap

    def told(shapes: Any, i: Any, j: Any, threshold: Any) -> Any:
        return overlaps(shapes, i, j, threshold)

    return told


@kernel
def _go_on(
    first: int,
    order: Any,
    shapes: Any,
    boxes: Any,
    informed: Any,
    core: Any,
    threshold: Any,
    state: Any,
    grid: Any,
    found: Any,
    whose: Any,
    answer: Any,
    edges: Any,
) -> Any:
    """Decide from a place in the order on, until something must be asked or the edges fill their room.

    ``answer[j]`` is what was said of ``j`` and the candidate ``whose[j]``.

    Nothing is asked where another pair tells enough.

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
            doubtful = -1
            for k in range(n):
                j = found[k]
                if state[j] != wanted:
                    continue
                if whose[j] != i:
                    whose[j], answer[j] = i, judge(shapes, j, i, threshold)
                if answer[j] == ASK:
                    doubtful = j
                elif answer[j] == YES and wanted == KEPT:
                    is_dropped = True
                elif answer[j] == YES:
                    edges[new, 0], edges[new, 1] = j, i
                    new += 1
                if is_dropped or (new > m and not core[i]):
                    doubtful = -1
                    break
            if doubtful >= 0:
                return at, doubtful, m
        if is_dropped:
            state[i] = DROPPED
            continue
        state[i] = KEPT if informed[i] and new == m else OPEN
        if core[i]:
            m = new
        put(grid, boxes, i)
    return len(order), -1, m
