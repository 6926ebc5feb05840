"""How much two star-convex polygons overlap, decided as StarDist decides it.

StarDist intersects polygons with Clipper (Johnson, version 6), on whole numbers: where two outlines cross, the point is
rounded to a pixel. The area that is left differs from the true one by some per cent in small objects, and that
difference decides. Here the boundary of the intersection is summed, piece by piece, with the same rounding. Where
corners lie on the other outline, the second polygon counts as moved by an infinitely small step (Edelsbrunner & Mücke,
"Simulation of simplicity", 1990). What Clipper's sweep does besides amounts to less than a pixel in most pairs; where
that could decide, it is to be asked.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from spatialdata_segment.core.jit import kernel

NO, YES, ASK = 0, 1, 2
_CLOSE, _CLOSE_SHARE = 2.0, 0.1
"""px, and share of the shorter outline, by which our area and Clipper's may differ."""


@kernel
def overlaps(stars: Any, i: int, j: int, threshold: Any) -> int:
    """Tell whether the intersection of two polygons is more than ``threshold`` of the smaller one: `NO`, `YES`, `ASK`.

    ``stars``: `Stars.fields`. Bounds decide where they can: boxes from above, inner circles from below. `ASK`: it is
    so close that only Clipper itself can tell.
    """
    corners, bbox, area, length, inner, points = stars
    if bbox[j, 0] > bbox[i, 1] or bbox[i, 0] > bbox[j, 1] or bbox[j, 2] > bbox[i, 3] or bbox[i, 2] > bbox[j, 3]:
        return NO
    least = min(area[i] + 1e-10, area[j] + 1e-10)
    high = min(bbox[i, 1], bbox[j, 1]) - max(bbox[i, 0], bbox[j, 0]) + 2
    wide = min(bbox[i, 3], bbox[j, 3]) - max(bbox[i, 2], bbox[j, 2]) + 2
    if high * wide <= threshold * least:
        return NO
    if inner[i] < 0 or inner[j] < 0:
        return ASK
    close = _CLOSE + _CLOSE_SHARE * min(length[i], length[j])
    dy, dx = float(points[i, 0] - points[j, 0]), float(points[i, 1] - points[j, 1])
    if _lens(inner[i], inner[j], math.sqrt(dy * dy + dx * dx)) > threshold * least + close:
        return YES
    found = 0.5 * abs(intersection(corners[i], corners[j]))
    if abs(found - threshold * least) <= close:
        return ASK
    return YES if exceeds(found, least, threshold) else NO


@kernel
def exceeds(area: float, least: float, threshold: Any) -> Any:
    """Compare a share with a threshold in StarDist's precision."""
    return np.float32(np.float32(area) / least) > np.float32(threshold)


@kernel
def _lens(r: float, s: float, d: float) -> float:
    """Return the area that two circles share."""
    if d >= r + s:
        return 0.0
    if d <= abs(r - s):
        return math.pi * min(r, s) ** 2
    a = (d * d + r * r - s * s) / (2 * d)
    b = d - a
    half = math.sqrt(max(0.0, r * r - a * a))
    return r * r * math.acos(max(-1.0, min(1.0, a / r))) + s * s * math.acos(max(-1.0, min(1.0, b / s))) - d * half


@kernel
def intersection(a: Any, b: Any) -> int:
    """Return twice the area of the intersection of two polygons ``(n, 2)`` of whole numbers ``(y, x)``."""
    return _inside(a, b, True) + _inside(b, a, False)


@kernel
def _inside(a: Any, b: Any, moves_other: bool) -> int:
    """Sum the pieces of the outline of ``a`` that lie in ``b``; ``moves_other``: ``b`` is the polygon that is moved."""
    n, m = len(a), len(b)
    at = np.empty(2 * m)
    way = np.empty(2 * m, np.int8)
    py, px = np.empty(2 * m, np.int64), np.empty(2 * m, np.int64)
    low_y, high_y, low_x, high_x = _box(b)
    depth = _winding(a[0, 0], a[0, 1], b, moves_other)
    total = 0
    for k in range(n):
        y0, x0 = a[k, 0], a[k, 1]
        y1, x1 = a[(k + 1) % n, 0], a[(k + 1) % n, 1]
        if y0 == y1 and x0 == x1:
            continue
        found = 0
        if max(y0, y1) >= low_y and min(y0, y1) <= high_y and max(x0, x1) >= low_x and min(x0, x1) <= high_x:
            found = _crossings(y0, x0, y1, x1, b, moves_other, at, way, py, px)
        ly, lx = y0, x0
        for c in range(found):
            if way[c] > 0:
                if depth == 0:
                    ly, lx = py[c], px[c]
                depth += 1
            else:
                depth -= 1
                if depth == 0:
                    total += lx * py[c] - ly * px[c]
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
def _crossings(
    y0: int, x0: int, y1: int, x1: int, b: Any, moves_other: bool, at: Any, way: Any, py: Any, px: Any
) -> int:
    """Write where an edge crosses an outline, in order: place, 1 for in and -1 for out, the pixel."""
    m, found = len(b), 0
    moved = 1 if moves_other else -1
    low_y, high_y, low_x, high_x = min(y0, y1), max(y0, y1), min(x0, x1), max(x0, x1)
    dy, dx = y1 - y0, x1 - x0
    for k in range(m):
        u0, v0 = b[k, 0], b[k, 1]
        u1, v1 = b[(k + 1) % m, 0], b[(k + 1) % m, 1]
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
            at[c], way[c], py[c], px[c] = at[c - 1], way[c - 1], py[c - 1], px[c - 1]
            c -= 1
        at[c], way[c], py[c], px[c] = place, 1 if ends_in else -1, cy, cx
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
