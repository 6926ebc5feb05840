"""Greedy suppression over a sparse graph, decided once for the whole image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray


def greedy(scores: NDArray[np.floating], anchors: NDArray[np.integer], edges: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Keep candidates from the highest score down, dropping those joined to one that is kept.

    Parameters
    ----------
    scores
        ``(n,)``; equal scores go by raster order of the anchors.
    anchors
        ``(n, ndim)``, unique.
    edges
        ``(m, 2)`` positions; direction and repetition do not matter.
    """
    order = np.lexsort((*reversed(anchors.T), -np.asarray(scores, np.float64)))
    both = np.concatenate([edges, edges[:, ::-1]]).astype(np.int64)
    both = both[np.argsort(both[:, 0], kind="stable")]
    start = np.searchsorted(both[:, 0], np.arange(len(scores) + 1))
    kept: NDArray[np.bool_] = _greedy(order, start, np.ascontiguousarray(both[:, 1]))
    return kept


@kernel
def _greedy(order: Any, start: Any, others: Any) -> Any:
    state = np.zeros(len(order), np.int8)
    for i in order:
        if state[i] == 0:
            state[i] = 1
            for j in range(start[i], start[i + 1]):
                if state[others[j]] == 0:
                    state[others[j]] = 2
    return state == 1
