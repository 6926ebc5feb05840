"""Paths along a flow field, and how far into a window the paths from beyond it may come.

A path starts in the middle of a pixel and takes steps of the flow there, interpolated between the four pixels
around (true bilinear, as Cellpose 3 does it on the CPU). Positions are whole numbers of 1/4096 px, counted from
the window: a path is then the same in every window, comes to rest exactly, and need not be followed beyond.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOWHERE, LOST = -1, -2
"""Where the path of a pixel ends that has none, and that of one which leaves what the window knows."""

LONGEST = 2.0
"""px along an axis: longer steps are cut. Trained networks make steps of 1 px."""

_REST = 1e-30
"""px: a step that leads nowhere, and yet is not 0, as it is where no path starts."""
BITS = 12
"""Of a pixel, in which positions are counted."""

_TILE = 32
_ROUNDING = 1.3e-4
"""px: half a unit of a position, and the error of float32."""


def flow_field(
    flows: NDArray[np.floating], inside: NDArray[np.floating], threshold: float, per_step: float = 5.0
) -> NDArray[np.float32]:
    """Return the steps ``(y, x, 2)`` that a path takes: 0 where ``inside`` is not above the threshold.

    Parameters
    ----------
    flows
        ``(2, y, x)`` along y and x, ``per_step`` a px of a step.
    inside
        ``(y, x)``; NaN where the maps are not known, and so is the field.
    """
    field = np.empty((*inside.shape, 2), np.float32)
    _fill_field(flows, inside, np.float32(threshold), np.float32(per_step), field)
    return field


def follow(field: NDArray[np.float32], edge: NDArray[np.int64], steps: int) -> NDArray[np.int32]:
    """Follow the paths of all pixels whose flow is not 0.

    Parameters
    ----------
    field
        ``(y, x, 2)`` px a step; NaN where it is not known.
    edge
        ``(2, 2)``: for each axis, whether its low and its high side are open (1) or the image's end (0), where
        paths stop.
    steps
        Of each path.

    Returns
    -------
    ``(y, x)``: the flat index of the pixel in which each path ends, `NOWHERE` where none starts, or `LOST`.
    """
    ends = np.full(field.shape[:2], NOWHERE, np.int32)
    _follow(np.ascontiguousarray(field), edge, steps, ends.reshape(-1))
    return ends


def reached(field: NDArray[np.float32], edge: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark the pixels in which a path from beyond the open sides, or from the unknown, may end or pass.

    No such pixel is left out, whatever the unseen flows are; some are marked that none reaches.
    """
    marked = np.zeros(field.shape[:2], np.bool_)
    _reach(field, edge, marked)
    return marked


def widened(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Return the pixels within ``radius`` along every axis, of any number, of a marked one."""
    wide = mask.copy()
    marks = wide.view(np.uint8)
    for axis in range(mask.ndim):
        _widen(marks.reshape(int(np.prod(mask.shape[:axis])), mask.shape[axis], -1), radius)
    return wide


@kernel
def _fill_field(flows: Any, inside: Any, threshold: Any, per_step: Any, field: Any) -> None:
    longest = np.float32(LONGEST)
    for y in range(inside.shape[0]):
        for x in range(inside.shape[1]):
            value = np.float32(inside[y, x])
            if value != value:
                field[y, x, 0] = field[y, x, 1] = np.nan
            elif value > threshold:
                for k in range(2):
                    step = np.float32(flows[k, y, x]) / per_step
                    field[y, x, k] = min(longest, max(-longest, step))
                if field[y, x, 0] == 0 and field[y, x, 1] == 0:  # its path ends where it starts
                    field[y, x, 0] = np.float32(_REST)
            else:
                field[y, x, 0] = field[y, x, 1] = np.float32(0)


@kernel
def _follow(field: Any, edge: Any, steps: Any, ends: Any) -> None:
    """Follow paths, a tile of them at once: their steps do not wait for each other. Indices are unsigned for speed."""
    height, width = field.shape[:2]
    values, row, pair, odd = field.reshape(-1), np.uint64(2 * width), np.uint64(2), np.uint64(1)
    unit, low_bits = np.int64(1) << BITS, (np.int64(1) << BITS) - 1
    one, scale, inverse = np.float32(1), np.float32(unit), np.float32(1 / unit)
    last_y, last_x, far = (height - 1) * unit, (width - 1) * unit, np.int64(1) << 62
    least_y, least_x = (0 if edge[0, 0] else -far), (0 if edge[1, 0] else -far)
    most_y, most_x = (last_y if edge[0, 1] else far), (last_x if edge[1, 1] else far)
    room = _TILE * _TILE
    ys, xs, pixel = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    before_y, before_x = np.empty(room, np.int64), np.empty(room, np.int64)
    for tile_y in range(0, height, _TILE):
        for tile_x in range(0, width, _TILE):
            n = 0
            for y in range(tile_y, min(height, tile_y + _TILE)):
                for x in range(tile_x, min(width, tile_x + _TILE)):
                    if field[y, x, 0] != 0 or field[y, x, 1] != 0:
                        ys[n], xs[n], before_y[n], before_x[n] = y * unit, x * unit, -1, -1
                        pixel[n] = y * width + x
                        n += 1
            for t in range(1, steps + 1):
                moving = 0
                for i in range(n):
                    y, x = ys[i], xs[i]
                    here = np.uint64(y >> BITS) * row + np.uint64(x >> BITS) * pair
                    right = here + pair if x < last_x else here
                    down = here + row if y < last_y else here
                    both = down + pair if x < last_x else down
                    v, u = np.float32(y & low_bits) * inverse, np.float32(x & low_bits) * inverse
                    w11 = v * u
                    w01, w10 = u - w11, v - w11
                    w00 = (one - v) - w01
                    step_y = ((values[here] * w00 + values[right] * w01) + values[down] * w10) + values[both] * w11
                    step_x = (
                        (values[here + odd] * w00 + values[right + odd] * w01) + values[down + odd] * w10
                    ) + values[both + odd] * w11
                    if step_y != step_y or step_x != step_x:
                        ends[pixel[i]] = LOST
                        continue
                    new_y = y + np.int64(np.rint(step_y * scale))
                    new_x = x + np.int64(np.rint(step_x * scale))
                    if new_y < least_y or new_y >= most_y or new_x < least_x or new_x >= most_x:
                        ends[pixel[i]] = LOST
                        continue
                    new_y, new_x = min(last_y, max(0, new_y)), min(last_x, max(0, new_x))
                    if new_y == y and new_x == x:
                        ends[pixel[i]] = (y >> BITS) * width + (x >> BITS)
                    elif new_y == before_y[i] and new_x == before_x[i]:  # to and fro: where the last step ends
                        if (steps - t) % 2 == 0:
                            y, x = new_y, new_x
                        ends[pixel[i]] = (y >> BITS) * width + (x >> BITS)
                    else:
                        before_y[moving], before_x[moving] = y, x
                        ys[moving], xs[moving], pixel[moving] = new_y, new_x, pixel[i]
                        moving += 1
                n = moving
                if n == 0:
                    break
            for i in range(n):
                ends[pixel[i]] = (ys[i] >> BITS) * width + (xs[i] >> BITS)


@kernel
def _reach(field: Any, edge: Any, marked: Any) -> None:
    """Spread from what is unknown, over the pixels in which any point of a marked one may be a step later."""
    height, width = marked.shape
    stack = np.empty((height * width, 2), np.int32)
    n = 0
    jump = int(np.ceil(LONGEST))
    for y in range(height):
        beside_y = (edge[0, 0] and y < jump) or (edge[0, 1] and y >= height - 1 - jump)
        for x in range(width):
            beside = beside_y or (edge[1, 0] and x < jump) or (edge[1, 1] and x >= width - 1 - jump)
            if field[y, x, 0] != field[y, x, 0]:
                for a in range(max(0, y - 1 - jump), min(height, y + jump + 1)):
                    for b in range(max(0, x - 1 - jump), min(width, x + jump + 1)):
                        if not marked[a, b]:
                            marked[a, b] = True
                            stack[n, 0], stack[n, 1] = a, b
                            n += 1
            elif beside and not marked[y, x]:
                marked[y, x] = True
                stack[n, 0], stack[n, 1] = y, x
                n += 1
    while n > 0:
        n -= 1
        y, x = stack[n]
        first_y, last_y = _next(field, y, x, 0)
        first_x, last_x = _next(field, y, x, 1)
        if first_y > last_y or first_x > last_x:
            continue
        for a in range(max(0, first_y), min(height - 1, last_y) + 1):
            for b in range(max(0, first_x), min(width - 1, last_x) + 1):
                if not marked[a, b]:
                    marked[a, b] = True
                    stack[n, 0], stack[n, 1] = a, b
                    n += 1


@kernel
def _next(field: Any, y: Any, x: Any, axis: Any) -> Any:
    """First and last pixel along an axis in which a point of pixel (y, x) may be a step later."""
    after_y, after_x = min(y + 1, field.shape[0] - 1), min(x + 1, field.shape[1] - 1)
    a, b = field[y, x, axis], field[y, after_x, axis]
    c, d = field[after_y, x, axis], field[after_y, after_x, axis]
    if a + b + c + d != a + b + c + d:  # unknown: its surroundings are marked already
        return 1, 0
    low, high = min(min(a, b), min(c, d)), max(max(a, b), max(c, d))
    here = y if axis == 0 else x
    first = here if low >= 0 else here + np.int64(np.floor(low - _ROUNDING))
    last = here if high <= 0 else here + np.int64(np.floor(high + 1.0 - 1.0 / (1 << BITS) + _ROUNDING))
    return first, last


@kernel
def _widen(marks: Any, radius: Any) -> None:
    """Widen along the middle axis, in place: the second bit is what the first pass found."""
    outer, length, inner = marks.shape
    last = np.empty(inner, np.int64)
    for k in range(outer):
        last[:] = -radius - 1
        for i in range(length):
            for j in range(inner):
                if marks[k, i, j]:
                    last[j] = i
                if i - last[j] <= radius:
                    marks[k, i, j] |= np.uint8(2)
        last[:] = length + radius
        for i in range(length - 1, -1, -1):
            for j in range(inner):
                if marks[k, i, j] & 1:
                    last[j] = i
                marks[k, i, j] = np.uint8(marks[k, i, j] > 1 or last[j] - i <= radius)
