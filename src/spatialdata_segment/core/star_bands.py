"""Bounds of the area that two polygons share, from rectangles in horizontal bands.

All polygons are cut by the same lines, and between two of them a polygon holds one rectangle and lies in another. What
the inner ones share two polygons share for certain, and they share no more than the outer ones do.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from spatialdata_segment.core.jit import kernel

_BANDS = 10.0
"""Of a polygon of the mean height."""
_LEAST = 0.5
"""px, the least height of a band."""


@kernel
def bands_of(corners: Any, counts: Any) -> Any:
    """Return the rectangles of polygons.

    Parameters
    ----------
    corners
        ``(n, m, 2)`` whole numbers ``(y, x)``.
    counts
        ``(n,)`` how many of them count.

    Returns
    -------
    The height of a band, px; ``(n,)`` the first band of each polygon, and ``(n + 1,)`` where its rectangles begin;
    ``(k, 4)`` float32: start and stop along x of the inner rectangle, which is empty where they are the wrong way
    round, and of the outer one.
    """
    n, total = len(corners), 0.0
    low, high = np.empty(n), np.empty(n)
    for i in range(n):
        low[i], high[i] = corners[i, : counts[i], 0].min(), corners[i, : counts[i], 0].max()
        total += high[i] - low[i]
    height = max(_LEAST, total / (_BANDS * max(n, 1)))
    first, begin = np.empty(n, np.int64), np.empty(n + 1, np.int64)
    begin[0] = 0
    for i in range(n):
        first[i] = math.floor(low[i] * (1.0 / height))
        begin[i + 1] = begin[i] + math.floor(high[i] * (1.0 / height)) - first[i] + 1
    spans = np.empty((begin[n], 4), np.float32)
    most = int((begin[1:] - begin[:-1]).max()) if n else 0
    room = corners.shape[1] * (most + 1)
    pieces = np.empty(room, np.int64), np.empty(room), np.empty(room), np.empty(room, np.bool_)
    inside = np.empty(most, np.bool_)
    for i in range(n):
        found = _cut(corners[i, : counts[i]], height, first[i], pieces)
        _fill(pieces, found, spans[begin[i] : begin[i + 1]], inside)
    return height, first, begin, spans


@kernel
def _cut(star: Any, height: float, first: int, pieces: Any) -> int:
    """Cut the outline of a polygon by the lines between bands; return the number of pieces.

    ``pieces``: the band of each, its extent along x, and whether it crosses the middle of the band.
    """
    place, low, high, crosses = pieces
    m, n, per_px = len(star), 0, 1.0 / height
    yb, xb = float(star[m - 1, 0]), float(star[m - 1, 1])
    for k in range(m):
        ya, xa = yb, xb
        yb, xb = float(star[k, 0]), float(star[k, 1])
        if ya <= yb:
            y0, x0, y1, x1 = ya, xa, yb, xb
        else:
            y0, x0, y1, x1 = yb, xb, ya, xa
        b, end, left = math.floor(y0 * per_px), math.floor(y1 * per_px), x0
        slope = (x1 - x0) / (y1 - y0) if b < end else 0.0
        while b <= end:
            right = x1 if b == end else x0 + ((b + 1) * height - y0) * slope
            half = (b + 0.5) * height
            place[n], low[n], high[n] = b - first, left, right
            if left > right:
                low[n], high[n] = right, left
            crosses[n] = y0 <= half < y1
            left, n, b = right, n + 1, b + 1
    return n


@kernel
def _fill(pieces: Any, found: int, spans: Any, inside: Any) -> None:
    """Write the rectangles of a polygon."""
    place, low, high, crosses = pieces
    n = len(spans)
    for b in range(n):
        spans[b, 0], spans[b, 1], spans[b, 2], spans[b, 3] = -np.inf, np.inf, np.inf, -np.inf
        inside[b] = False
    for p in range(found):
        b = place[p]
        if low[p] < spans[b, 2]:
            spans[b, 2] = low[p]
        if high[p] > spans[b, 3]:
            spans[b, 3] = high[p]
    for p in range(found):
        b = place[p]
        centre = 0.5 * (spans[b, 2] + spans[b, 3])
        if high[p] <= centre:
            if high[p] > spans[b, 0]:
                spans[b, 0] = high[p]
            inside[b] ^= crosses[p]
        elif low[p] < centre:
            spans[b, 0] = np.inf
        elif low[p] < spans[b, 1]:
            spans[b, 1] = low[p]
    for b in range(n):
        if not inside[b] or b == 0 or b == n - 1:  # in the first and the last the outline turns
            spans[b, 0], spans[b, 1] = np.inf, -np.inf


@kernel
def bounds(bands: Any, i: int, j: int) -> Any:
    """Return an area, px, that two polygons share at least, and one that they share at most; see `bands_of`."""
    height, first, begin, spans = bands
    start = max(first[i], first[j])
    stop = min(first[i] + begin[i + 1] - begin[i], first[j] + begin[j + 1] - begin[j])
    a, b = begin[i] + start - first[i], begin[j] + start - first[j]
    least = most = 0.0
    for k in range(stop - start):
        inner = min(spans[a + k, 1], spans[b + k, 1]) - max(spans[a + k, 0], spans[b + k, 0])
        outer = min(spans[a + k, 3], spans[b + k, 3]) - max(spans[a + k, 2], spans[b + k, 2])
        if outer > 0:
            most += outer
            if inner > 0:
                least += inner
    return height * least, height * most
