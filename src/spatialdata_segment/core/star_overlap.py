"""How much two star-convex polygons overlap, decided as StarDist decides it.

StarDist intersects polygons with Clipper (Johnson, version 6), on whole numbers: where two outlines cross, the point is
rounded to a pixel. The area that is left differs from the true one by some per cent in small objects, and that
difference decides. Here the boundary of the intersection is summed, piece by piece, with the same rounding. Where
corners lie on the other outline, the second polygon counts as moved by an infinitely small step (Edelsbrunner & Mücke,
"Simulation of simplicity", 1990). What Clipper's sweep does besides amounts to less than a pixel in most pairs; where
that could decide, it is to be asked.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.star_bands import bounds
from spatialdata_segment.core.star_sectors import sector_of, sectors

NO, YES, ASK = 0, 1, 2
_CLOSE, _CLOSE_SHARE = 2.0, 0.1
"""px, and share of the shorter outline, by which our area and Clipper's may differ."""


@kernel
def overlaps(stars: Any, i: int, j: int, threshold: Any) -> int:
    """Tell whether the intersection of two polygons is more than ``threshold`` of the smaller one: `NO`, `YES`, `ASK`.

    ``stars``: `Stars.fields`. Bounds decide where they can. `ASK`: it is so close that only Clipper itself can tell.
    """
    _, bbox, area, length, _, turns, bands = stars
    if bbox[j, 0] > bbox[i, 1] or bbox[i, 0] > bbox[j, 1] or bbox[j, 2] > bbox[i, 3] or bbox[i, 2] > bbox[j, 3]:
        return NO
    least = min(area[i] + 1e-10, area[j] + 1e-10)
    high = min(bbox[i, 1], bbox[j, 1]) - max(bbox[i, 0], bbox[j, 0]) + 2
    wide = min(bbox[i, 3], bbox[j, 3]) - max(bbox[i, 2], bbox[j, 2]) + 2
    if high * wide <= threshold * least:
        return NO
    close = _CLOSE + _CLOSE_SHARE * min(length[i], length[j])
    shared = bounds(bands, i, j)
    if shared[0] > threshold * least + close:
        return YES
    if shared[1] + close < threshold * least:
        return NO
    if turns[i] == 0 or turns[j] == 0:
        return ASK
    found = 0.5 * abs(shared_area(stars, i, j))
    if abs(found - threshold * least) <= close:
        return ASK
    return YES if exceeds(found, least, threshold) else NO


@kernel
def shared_area(stars: Any, i: int, j: int) -> int:
    """Return twice the area of the intersection of two polygons, of `Stars.fields`, that turn once."""
    corners, points, turns = stars[0], stars[4], stars[5]
    a, b = corners[i, : abs(turns[i])], corners[j, : abs(turns[j])]
    of_a = _inside(a, b, True, turns[j] > 0, int(points[j, 0]), int(points[j, 1]))
    return of_a + _inside(b, a, False, turns[i] > 0, int(points[i, 0]), int(points[i, 1]))


@kernel
def exceeds(area: float, least: float, threshold: Any) -> Any:
    """Compare a share with a threshold in StarDist's precision."""
    return np.float32(np.float32(area) / least) > np.float32(threshold)


@kernel
def intersection(a: Any, b: Any) -> int:
    """Return twice the area of the intersection of two polygons ``(n, 2)`` of whole numbers ``(y, x)``."""
    return _inside(a, b, True, False, 0, 0) + _inside(b, a, False, False, 0, 0)


@kernel
def _inside(a: Any, b: Any, moves_other: bool, walks: bool, oy: int, ox: int) -> int:
    """Sum the pieces of the outline of ``a`` that lie in ``b``; ``moves_other``: ``b`` is the polygon that is moved.

    ``walks``: all edges of ``b`` go on around the pixel ``(oy, ox)``, so that an edge of ``a`` can cross only those in
    whose sector it lies.
    """
    n, m = len(a), len(b)
    at, crossed = np.empty(m), np.empty((m, 3), np.int64)
    low_y, high_y, low_x, high_x = _box(b)
    depth = _winding(a[0, 0], a[0, 1], b, moves_other)
    total, first, last = 0, 0, m
    sector = sector_of(b, oy, ox, a[0, 0], a[0, 1]) if walks else 0
    for k in range(n):
        y0, x0 = a[k, 0], a[k, 1]
        y1, x1 = a[(k + 1) % n, 0], a[(k + 1) % n, 1]
        if y0 == y1 and x0 == x1:
            continue
        if walks:
            first, last, sector = sectors(b, y0 - oy, x0 - ox, y1 - oy, x1 - ox, oy, ox, sector)
        found = 0
        if max(y0, y1) >= low_y and min(y0, y1) <= high_y and max(x0, x1) >= low_x and min(x0, x1) <= high_x:
            edge = y0, x0, y1, x1
            if first < 0:  # in the order of the edges, always
                found = _crossings(edge, b, 0, last, moves_other, at, crossed, 0)
                found = _crossings(edge, b, first + m, m, moves_other, at, crossed, found)
            elif last > m:
                found = _crossings(edge, b, 0, last - m, moves_other, at, crossed, 0)
                found = _crossings(edge, b, first, m, moves_other, at, crossed, found)
            else:
                found = _crossings(edge, b, first, last, moves_other, at, crossed, 0)
        ly, lx = y0, x0
        for c in range(found):
            way, py, px = crossed[c, 0], crossed[c, 1], crossed[c, 2]
            if way > 0:
                if depth == 0:
                    ly, lx = py, px
                depth += 1
            else:
                depth -= 1
                if depth == 0:
                    total += lx * py - ly * px
        if depth > 0:
            total += lx * y1 - ly * x1
    return total


@kernel
def _box(b: Any) -> Any:
    low_y, high_y, low_x, high_x = b[0, 0], b[0, 0], b[0, 1], b[0, 1]
    for k in range(1, len(b)):
        low_y, high_y = min(low_y, b[k, 0]), max(high_y, b[k, 0])
        low_x, high_x = min(low_x, b[k, 1]), max(high_x, b[k, 1])
    return low_y, high_y, low_x, high_x


@kernel
def _side(y0: int, x0: int, y1: int, x1: int, y: int, x: int, moved: int) -> int:
    """Return on which side of a line a point lies, never 0; ``moved``: 1 the point is, -1 the line is."""
    dy, dx = y1 - y0, x1 - x0
    cross = dx * (y - y0) - dy * (x - x0)
    if cross == 0:
        cross = moved * (-dy if dy != 0 else dx)
    return cross


@kernel
def _crossings(edge: Any, b: Any, first: int, last: int, moves_other: bool, at: Any, crossed: Any, found: int) -> int:
    """Add where an edge crosses some edges of an outline, in order; return how many crossings there are by now.

    ``at``: places along the edge. ``crossed``: 1 for in and -1 for out, the pixel.
    """
    y0, x0, y1, x1 = edge
    m = len(b)
    moved = 1 if moves_other else -1
    low_y, high_y, low_x, high_x = min(y0, y1), max(y0, y1), min(x0, x1), max(x0, x1)
    dy, dx = y1 - y0, x1 - x0
    for k in range(first, last):
        after = k + 1 if k + 1 < m else 0
        u0, v0, u1, v1 = b[k, 0], b[k, 1], b[after, 0], b[after, 1]
        if max(u0, u1) < low_y or min(u0, u1) > high_y or max(v0, v1) < low_x or min(v0, v1) > high_x:
            continue
        if u0 == u1 and v0 == v1:
            continue
        if (_side(y0, x0, y1, x1, u0, v0, moved) > 0) == (_side(y0, x0, y1, x1, u1, v1, moved) > 0):
            continue
        ends_in = _side(u0, v0, u1, v1, y1, x1, -moved) > 0
        if (_side(u0, v0, u1, v1, y0, x0, -moved) > 0) == ends_in:
            continue
        across = float(dx * (u1 - u0) - dy * (v1 - v0))
        place = float((v0 - x0) * (u1 - u0) - (u0 - y0) * (v1 - v0)) / across
        if moves_other:  # in one order, so that both outlines turn in the same pixel
            cy, cx = _cross_point(y0, x0, y1, x1, u0, v0, u1, v1)
        else:
            cy, cx = _cross_point(u0, v0, u1, v1, y0, x0, y1, x1)
        c = found
        while c > 0 and at[c - 1] > place:
            at[c] = at[c - 1]
            for f in range(3):
                crossed[c, f] = crossed[c - 1, f]
            c -= 1
        at[c], crossed[c, 0], crossed[c, 1], crossed[c, 2] = place, 1 if ends_in else -1, cy, cx
        found += 1
    return found


@kernel
def _round(value: float) -> int:
    return int(value - 0.5) if value < 0 else int(value + 0.5)


@kernel
def _cross_point(y0: int, x0: int, y1: int, x1: int, u0: int, v0: int, u1: int, v1: int) -> Any:
    """Return the pixel ``(y, x)`` in which two edges cross, by Clipper's formulas."""
    if y0 < y1:  # edges begin at their greater y
        y0, x0, y1, x1 = y1, x1, y0, x0
    if u0 < u1:
        u0, v0, u1, v1 = u1, v1, u0, v0
    if y0 == y1:
        return y0, _round(v0 + float(v1 - v0) / float(u1 - u0) * float(y0 - u0))
    if u0 == u1:
        return u0, _round(x0 + float(x1 - x0) / float(y1 - y0) * float(u0 - y0))
    s, t = float(x1 - x0) / float(y1 - y0), float(v1 - v0) / float(u1 - u0)
    if x0 == x1:
        return _round(float(x0) / t + (u0 - v0 / t)), x0
    if v0 == v1:
        return _round(float(v0) / s + (y0 - x0 / s)), v0
    p, q = x0 - y0 * s, v0 - u0 * t
    y = (q - p) / (s - t)
    return _round(y), _round(s * y + p) if abs(s) < abs(t) else _round(t * y + q)


@kernel
def _winding(y: int, x: int, b: Any, moves_other: bool) -> int:
    """Return how often an outline goes around a point; ``moves_other``: the outline is moved, else the point is."""
    m, turns = len(b), 0
    moved = -1 if moves_other else 1
    for k in range(m):
        u0, v0 = b[k, 0], b[k, 1]
        u1, v1 = b[(k + 1) % m, 0], b[(k + 1) % m, 1]
        above0 = u0 >= y if moves_other else u0 > y
        above1 = u1 >= y if moves_other else u1 > y
        if above0 == above1:
            continue
        side = _side(u0, v0, u1, v1, y, x, moved)
        if above1 and side > 0:
            turns += 1
        elif above0 and side < 0:
            turns -= 1
    return turns
