"""Kernels behind :mod:`spatialdata_segment.core.contours`: corners and their rings.

A set of pixels is its corners: the points where the sum of its indicator over the 2 x 2 pixels around (+
upper left, - upper right, - lower left, + lower right) is not 0. It is 1 or -1 at a plain corner and 2 or -2
where two pixels touch diagonally; such points stand in the arrays twice. Along a line of pixel edges the
corners pair up, first with second, third with fourth: these pairs are the edges.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(nogil=True, cache=True)
def _steps(labels: NDArray[Any], y: int, step: NDArray[np.bool_]) -> None:
    """Write for each vertical edge of the row ``y`` whether the label changes there; none outside."""
    height, width = labels.shape
    if y == height:
        step[:] = False
        return
    row = labels[y]
    step[0] = row[0] != 0
    for x in range(1, width):
        step[x] = row[x] != row[x - 1]
    step[width] = row[width - 1] != 0


@numba.njit(nogil=True, cache=True)
def _either(one: NDArray[np.bool_], other: NDArray[np.bool_], either: NDArray[np.bool_]) -> None:
    for x in range(len(one)):
        either[x] = one[x] | other[x]


@numba.njit(nogil=True, cache=True)
def _row_corners(
    labels: NDArray[Any],
    y: int,
    either: NDArray[np.bool_],
    ids: NDArray[Any],
    xs: NDArray[np.int64],
    plus: NDArray[np.bool_],
) -> int:
    """Write the corners between the rows ``y - 1`` and ``y``, where ``either`` steps; return their number."""
    height, width = labels.shape
    zero = labels.dtype.type(0)
    eights = either.view(np.uint64)  # a look at eight points at once: most of them are no corners
    n = 0
    for eight in range(len(eights)):
        if eights[eight] == 0:
            continue
        for x in range(8 * eight, min(8 * eight + 8, width + 1)):
            if not either[x]:
                continue
            a = labels[y - 1, x - 1] if y > 0 and x > 0 else zero
            b = labels[y - 1, x] if y > 0 and x < width else zero
            c = labels[y, x - 1] if y < height and x > 0 else zero
            d = labels[y, x] if y < height and x < width else zero
            if a == c and b == d:
                continue
            ab = a == b
            ac = a == c and not ab
            db = d == b and not ab
            dc = d == c and not ac and not db
            for value, gone, sign in (
                (a, ab or ac, True),
                (b, ab or db, False),
                (c, ac or dc, False),
                (d, db or dc, True),
            ):
                if value != zero and not gone:
                    ids[n], xs[n], plus[n] = value, x, sign
                    n += 1
    return n


@numba.njit(nogil=True, cache=True)
def _longer(a: NDArray[Any], size: int) -> NDArray[Any]:
    b = np.empty(size, a.dtype)
    b[: len(a)] = a
    return b


@numba.njit(nogil=True, cache=True)
def corners(
    labels: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Find the corners of all objects of a ``(y, x)`` image: ``ids, y, x, plus``, in order of (y, x)."""
    height, width = labels.shape
    most = 4 * (width + 1)  # in one row
    steps = np.zeros((2, width + 1), np.bool_)
    either = np.zeros((width + 8) // 8 * 8, np.bool_)
    ids = np.empty(most, labels.dtype)
    ys, xs, plus = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.bool_)
    n = 0
    for y in range(height + 1 if width else 0):
        if n + most > len(ids):
            size = 2 * len(ids) + most
            ids, ys, xs, plus = _longer(ids, size), _longer(ys, size), _longer(xs, size), _longer(plus, size)
        _steps(labels, y, steps[y % 2])
        _either(steps[0], steps[1], either)
        m = n + _row_corners(labels, y, either, ids[n:], xs[n:], plus[n:])
        ys[n:m] = y
        n = m
    return ids[:n], ys[:n], xs[:n], plus[:n]


def links(
    ids: NDArray[np.int64], y: NDArray[np.int64], x: NDArray[np.int64], plus: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return how the corners hang together: ``column, begin, twin``.

    ``column`` has the corners in order of (id, x, y), ``begin`` where the (id, x) of each place in it begins,
    ``twin`` for each corner the other one at the same point, else -1. The input is in order of (id, y, x):
    where two pixels touch diagonally, the left pixel's corner comes first; in ``column``, the upper pixel's.
    """
    same = np.flatnonzero((ids[1:] == ids[:-1]) & (y[1:] == y[:-1]) & (x[1:] == x[:-1]))
    twin = np.full(len(ids), -1, np.int64)
    twin[same] = same + 1
    twin[same + 1] = same
    line = np.cumsum(np.r_[False, ids[1:] != ids[:-1]]) * (np.ptp(x) + 1) + (x - x.min())
    column = np.argsort(line, kind="stable")
    line = line[column]
    begin = np.arange(len(ids))
    begin[1:][line[1:] == line[:-1]] = 0
    np.maximum.accumulate(begin, out=begin)
    k = np.flatnonzero((twin[column[:-1]] == column[1:]) & ~plus[column[:-1]])
    column[k], column[k + 1] = column[k + 1], column[k]
    return column, begin, twin


@numba.njit(nogil=True, cache=True)
def _close(
    stack: NDArray[np.int64],
    base: int,
    top: int,
    vertex: NDArray[np.int64],
    n: int,
    depth: NDArray[np.int64],
) -> int:
    for k in range(base, top):
        vertex[n] = stack[k]
        depth[stack[k]] = -1
        n += 1
    return n


@numba.njit(nogil=True, cache=True)
def _left(y: NDArray[np.int64], column: NDArray[np.int64], begin: NDArray[np.int64], place: int) -> int:
    """Return a corner of the nearest vertical edge on the left, in the row above the corner at ``place``."""
    row = y[column[place]] - 1
    while True:
        place = begin[place] - 1
        low, high = begin[place] // 2, place // 2
        while low < high:
            middle = (low + high + 1) // 2
            if y[column[2 * middle]] <= row:
                low = middle
            else:
                high = middle - 1
        if y[column[2 * low]] <= row < y[column[2 * low + 1]]:
            return int(column[2 * low])


@numba.njit(nogil=True, cache=True)
def walk(
    y: NDArray[np.int64],
    plus: NDArray[np.bool_],
    column: NDArray[np.int64],
    begin: NDArray[np.int64],
    twin: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Follow the edges from corner to corner into simple rings.

    A curve keeps diagonal pixels apart, so each is the outer or an inner border of one 4-connected
    component; where it comes back to a point it is cut in two, which leaves simple rings. A curve whose first
    plus corner is the left end of its edge is an outer one. An inner one belongs to the component of the
    nearest edge on the left in the row above its topmost corner; that edge's curve has begun before.

    Returns
    -------
    vertex
        ``(n,)``: the corners, ring after ring, interior on the left (y up).
    stop
        ``(rings,)``: where each ring ends in ``vertex``.
    owner
        ``(rings,)``: its component; ascending with the ids.
    """
    n = len(plus)
    vertical = np.empty(n, np.int64)
    place = np.empty(n, np.int64)
    for k in range(0, n, 2):
        vertical[column[k]] = column[k + 1]
        vertical[column[k + 1]] = column[k]
        place[column[k]], place[column[k + 1]] = k, k + 1
    vertex = np.empty(n, np.int64)
    stop = np.empty(n // 4, np.int64)
    owner = np.empty(n // 4, np.int64)
    component = np.full(n, -1, np.int64)
    depth = np.full(n, -1, np.int64)
    stack = np.empty(n, np.int64)
    done = ring = 0
    for first in range(n):
        if not plus[first] or component[first] >= 0:
            continue
        mine = first
        if first % 2:
            mine = component[_left(y, column, begin, place[first - 1])]
        i = first
        top = 0
        while component[i] < 0:
            for j in (i, i ^ 1):
                other = twin[j]
                if other >= 0 and depth[other] >= 0:
                    base = depth[other]
                    done = _close(stack, base, top, vertex, done, depth)
                    stop[ring], owner[ring] = done, mine
                    ring += 1
                    top = base
                component[j] = mine
                stack[top] = j
                depth[j] = top
                top += 1
            i = vertical[i ^ 1]
        done = _close(stack, 0, top, vertex, done, depth)
        stop[ring], owner[ring] = done, mine
        ring += 1
    return vertex, stop[:ring], owner[:ring]
