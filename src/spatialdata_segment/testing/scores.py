"""Accuracy of labels against a ground truth, from sparse pair counts: memory O(objects), whatever the ids.

The definitions are those of Caicedo et al. (Nature Methods 2019), StarDist's ``matching`` and Cellpose's
``average_precision``: at a threshold, a true and a found object match where their intersection over union is
at least that; TP is the largest number of one-to-one matches, ``AP = TP / (TP + FP + FN)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dask.array as da
    from numpy.typing import NDArray

_FAN_IN = 16  # tables of chunks that are merged at once


class Pairs(NamedTuple):
    """Pixels that each pair of labels shares, ordered by the pair; 0 is the background."""

    truth: NDArray[np.uint64]
    found: NDArray[np.uint64]
    pixels: NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """How found objects match true ones, one entry a threshold.

    Attributes
    ----------
    thresholds
        Least intersection over union of a match.
    n_truth, n_found
        Number of objects.
    tp
        Matches; the found objects without one are ``fp``, the true ones ``fn``.
    """

    thresholds: tuple[float, ...]
    n_truth: int
    n_found: int
    tp: tuple[int, ...]

    @property
    def fp(self) -> tuple[int, ...]:
        """Found objects that match no true one."""
        return tuple(self.n_found - n for n in self.tp)

    @property
    def fn(self) -> tuple[int, ...]:
        """True objects that no found one matches."""
        return tuple(self.n_truth - n for n in self.tp)

    @property
    def precision(self) -> tuple[float, ...]:
        """TP / (TP + FP); 0 where nothing was found."""
        return tuple(_share(n, self.n_found) for n in self.tp)

    @property
    def recall(self) -> tuple[float, ...]:
        """TP / (TP + FN); 0 where there is nothing to find."""
        return tuple(_share(n, self.n_truth) for n in self.tp)

    @property
    def f1(self) -> tuple[float, ...]:
        """2 TP / (2 TP + FP + FN); 0 where there is no object."""
        return tuple(_share(2 * n, self.n_truth + self.n_found) for n in self.tp)

    @property
    def ap(self) -> tuple[float, ...]:
        """TP / (TP + FP + FN), "average precision" or StarDist's accuracy; 0 where there is no object."""
        return tuple(_share(n, self.n_truth + self.n_found - n) for n in self.tp)

    def __str__(self) -> str:
        lines = [
            f"{self.n_truth} true, {self.n_found} found objects",
            "  IoU     TP     FP     FN  prec   rec    F1    AP",
        ]
        for row in zip(
            self.thresholds,
            self.tp,
            self.fp,
            self.fn,
            self.precision,
            self.recall,
            self.f1,
            self.ap,
            strict=True,
        ):
            lines.append("{:5.2f} {:6d} {:6d} {:6d} {:5.3f} {:5.3f} {:5.3f} {:5.3f}".format(*row))
        return "\n".join(lines)


def match_scores(
    truth: NDArray[Any] | da.Array,
    found: NDArray[Any] | da.Array,
    thresholds: Sequence[float] = (0.5, 0.7, 0.9),
) -> Scores:
    """Score found labels against true ones.

    Parameters
    ----------
    truth, found
        Labels of one shape, any number of axes, 0 = background; numpy or dask, any integer type. Dask arrays
        are read chunk by chunk, once.
    thresholds
        Least intersection over union of a match, each above 0 and at most 1.

    Returns
    -------
    Counts and rates at each threshold.

    Raises
    ------
    InputError
        Shapes that differ, labels that are no integers or negative, a threshold out of range.

    Notes
    -----
    Above 0.5 an object has at most one partner. At 0.5 and below the largest matching is found
    (:func:`scipy.sparse.csgraph.maximum_bipartite_matching`).
    """
    levels = tuple(float(t) for t in thresholds)
    if not levels or not all(0 < t <= 1 for t in levels):
        raise InputError(f"thresholds {levels}: expected at least one, each above 0 and at most 1.")
    if truth.shape != found.shape:
        raise InputError(f"truth has the shape {truth.shape}, found {found.shape}: expected the same.")
    for name, labels in (("truth", truth), ("found", found)):
        if labels.dtype.kind not in "uib":
            raise InputError(f"{name} has the type {labels.dtype}: expected integers.")
    pairs = pair_counts(truth, found)
    true_ids, true_area = _areas(pairs.truth, pairs.pixels)
    found_ids, found_area = _areas(pairs.found, pairs.pixels)
    both = (pairs.truth > 0) & (pairs.found > 0)
    row = np.searchsorted(true_ids, pairs.truth[both])
    column = np.searchsorted(found_ids, pairs.found[both])
    common = pairs.pixels[both]
    iou = common / (true_area[row] + found_area[column] - common)
    tp = tuple(_matches(row, column, iou >= t, t, (len(true_ids), len(found_ids))) for t in levels)
    return Scores(levels, len(true_ids), len(found_ids), tp)


def pair_counts(truth: NDArray[Any] | da.Array, found: NDArray[Any] | da.Array) -> Pairs:
    """Count the pixels of every pair of labels that occurs, the background's included."""
    if isinstance(truth, np.ndarray) and isinstance(found, np.ndarray):
        return _count(truth, found)
    import dask.array as da
    from dask.delayed import delayed

    chunks = truth.chunks if isinstance(truth, da.Array) else found.chunks  # type: ignore[union-attr]
    first, second = (da.asarray(labels).rechunk(chunks) for labels in (truth, found))
    count, merge = delayed(_count), delayed(_merge)
    tables = [count(a, b) for a, b in zip(first.to_delayed().ravel(), second.to_delayed().ravel(), strict=True)]
    while len(tables) > 1:
        tables = [merge(tables[i : i + _FAN_IN]) for i in range(0, len(tables), _FAN_IN)]
    result: Pairs = tables[0].compute() if tables else _merge([])
    return result


def _count(truth: NDArray[Any], found: NDArray[Any]) -> Pairs:
    """Count the pairs of one chunk by its runs of equal pairs: there are far fewer of them than pixels."""
    a, b = truth.ravel(), found.ravel()
    for labels in (a, b):
        if labels.size and labels.dtype.kind == "i" and labels.min() < 0:
            raise InputError(f"Label {labels.min()}: expected labels of at least 0.")
    if not a.size:
        return _merge([])
    start = np.flatnonzero(np.r_[True, (a[1:] != a[:-1]) | (b[1:] != b[:-1])])
    length = np.diff(np.r_[start, a.size])
    return _merge([Pairs(a[start].astype(np.uint64), b[start].astype(np.uint64), length)])


def _merge(tables: list[Pairs]) -> Pairs:
    """Add up tables of pairs."""
    if not tables:
        return Pairs(np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64))
    truth, found, count = (np.concatenate(columns) for columns in zip(*tables, strict=True))
    order = np.lexsort((found, truth))
    truth, found, count = truth[order], found[order], count[order]
    start = np.flatnonzero(np.r_[True, (truth[1:] != truth[:-1]) | (found[1:] != found[:-1])])[: len(truth)]
    total = np.add.reduceat(count, start) if len(start) else count
    return Pairs(truth[start], found[start], total.astype(np.int64))


def _areas(ids: NDArray[np.uint64], count: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the ids above 0, ascending, and their pixels."""
    unique, inverse = np.unique(ids, return_inverse=True)
    area = np.zeros(len(unique), np.int64)
    np.add.at(area, inverse, count)
    return unique[unique > 0], area[unique > 0]


def _matches(
    row: NDArray[np.intp],
    column: NDArray[np.intp],
    enough: NDArray[np.bool_],
    threshold: float,
    shape: tuple[int, int],
) -> int:
    """Return the size of the largest one-to-one matching of the pairs that overlap enough."""
    if threshold > 0.5 or not enough.any():
        return int(enough.sum())
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    graph = csr_array((np.ones(int(enough.sum()), np.int8), (row[enough], column[enough])), shape=shape)
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
