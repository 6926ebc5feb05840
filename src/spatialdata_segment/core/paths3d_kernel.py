"""Paths of many voxels at once: the kernels of `core.paths3d`.

The paths of a block of voxels advance together, a batch of them in two turns: the words around each are gathered, one
path after the other, and all steps of the batch are interpolated in one loop without branches, which the compiler makes
vector instructions of. Everything is in whole numbers, so that both turns give what one path alone has.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.paths import BITS, LOST

# A voxel's word: the steps along z, x and y in 16 bits each, 0 at ZERO, from the lowest bits on; then its marks. Two of
# them are weighted at once: the sum of 16 bits by weights of 16 bits takes 32.
ZERO = 1 << 15
INSIDE, UNKNOWN = 1, 4
_UNIT = 1 << BITS
_Z_AND_Y, _X_AND_UNKNOWN = 0xFFFF_0000_FFFF, UNKNOWN << 32 | 0xFFFF

_BLOCK = 8
_ROOM = _BLOCK * _BLOCK * _BLOCK + 16
"""Of a row; rows a power of two apart would share the same lines of the cache."""
_BATCH = 64

# Rows of what is known of the paths of a block, `_ROOM` of each, int32: positions now (z, y, x), one step before, and
# at a mark; what the last step found; the voxel it led to; the step after which the path is at its end; whose it is.
_ROWS = 13
_BEFORE, _MARK, _FOUND, _AT, _UNTIL, _VOXEL = (k * _ROOM for k in (3, 6, 9, 10, 11, 12))
_BACK, _MET, _LEFT = 1, 2, 4
"""What a step finds: it leads to about where the path was before the last; to the mark; out of what is known."""
NEAR, SAFE = 8, 32
"""1/4096 px along an axis: what counts as going back; how far from the faces of their voxels both places must be."""
_FAR = -(1 << 30)


@kernel
def follow_all(field: Any, edge: Any, steps: Any, start: Any, ends: Any) -> None:
    """Follow the paths that start in the voxels of ``ends``, the first of which is ``start`` in the field.

    A path that comes back within `NEAR` after two steps is taken to go to and fro. Of those that go round and round,
    places after 1, 2, 4, 8 ... steps are remembered; where one is there again, what is left is less than one round.
    """
    height, width = field.shape[1:]
    rows, columns = ends.shape[1], ends.shape[2]
    words, out = field.reshape(-1), ends.reshape(-1)
    paths, around = np.empty(_ROWS * _ROOM, np.int32), np.empty(8 * _BATCH, np.uint64)
    size, least, most = np.empty(3, np.int64), np.empty(3, np.int64), np.empty(3, np.int64)
    for k in range(3):
        size[k] = field.shape[k]
        least[k] = 0 if edge[k, 0] else -(1 << 40)
        most[k] = (field.shape[k] - 1) * _UNIT if edge[k, 1] else 1 << 40
    for block_z in range(0, ends.shape[0], _BLOCK):
        for block_y in range(0, rows, _BLOCK):
            for block_x in range(0, columns, _BLOCK):
                n = 0
                for z in range(block_z, min(ends.shape[0], block_z + _BLOCK)):
                    for y in range(block_y, min(rows, block_y + _BLOCK)):
                        for x in range(block_x, min(columns, block_x + _BLOCK)):
                            a, b, c = z + start[0], y + start[1], x + start[2]
                            word, here = field[a, b, c], (z * rows + y) * columns + x
                            if word >= np.uint64(UNKNOWN << 48):
                                out[here] = LOST
                            elif word & np.uint64(INSIDE << 48):
                                paths[n], paths[_ROOM + n], paths[2 * _ROOM + n] = a * _UNIT, b * _UNIT, c * _UNIT
                                for k in range(6):
                                    paths[_BEFORE + k * _ROOM + n] = _FAR
                                paths[_FOUND + n], paths[_AT + n] = 0, (a * height + b) * width + c
                                paths[_UNTIL + n], paths[_VOXEL + n] = steps, here
                                n += 1
                _follow_block(words, size, least, most, steps, n, paths, around, out)


@kernel
def _follow_block(
    words: Any, size: Any, least: Any, most: Any, steps: Any, n: Any, paths: Any, around: Any, ends: Any
) -> None:
    """Follow the first ``n`` paths to their ends."""
    marked = 0
    for t in range(steps + 1):
        for first in range(0, n, _BATCH):
            n = _gather(words, size, t, steps, marked, first, n, paths, around, ends)
            count = min(n - first, _BATCH)
            if t & (t - 1) == 0:
                for k in range(3):
                    for i in range(first, first + count):
                        paths[_MARK + k * _ROOM + i] = paths[k * _ROOM + i]
            _advance(size, least, most, first, count, paths, around)
        if t & (t - 1) == 0:
            marked = t
        if n == 0:
            break


@kernel
def _gather(
    words: Any, size: Any, t: Any, steps: Any, marked: Any, first: Any, n: Any, paths: Any, around: Any, ends: Any
) -> Any:
    """Gather the words around a batch of paths from ``first`` on.

    Of those that are at their ends after ``t`` steps these are written, and the last of all ``n`` paths takes their
    place; returns how many are left.
    """
    height, width = size[1], size[2]
    last_z, last_y, last_x = (size[0] - 1) * _UNIT, (height - 1) * _UNIT, (width - 1) * _UNIT
    i = first
    while i < min(n, first + _BATCH):
        found, at = paths[_FOUND + i], paths[_AT + i]
        if found & _MET and paths[_UNTIL + i] == steps:
            paths[_UNTIL + i] = t + (steps - t) % (t - marked)
        if found & (_LEFT | _BACK) or paths[_UNTIL + i] == t:
            if found & _LEFT:
                at = np.int32(LOST)
            elif found & _BACK and (steps - t) % 2 == 1:
                z, y, x = paths[_BEFORE + i], paths[_BEFORE + _ROOM + i], paths[_BEFORE + 2 * _ROOM + i]
                at = ((z >> BITS) * height + (y >> BITS)) * width + (x >> BITS)
            ends[paths[_VOXEL + i]] = at
            n -= 1
            for row in range(_ROWS):
                paths[row * _ROOM + i] = paths[row * _ROOM + n]
            continue
        on_z = np.uint64(height * width) if paths[i] < last_z else np.uint64(0)
        on_y = np.uint64(width) if paths[_ROOM + i] < last_y else np.uint64(0)
        on_x = np.uint64(1) if paths[2 * _ROOM + i] < last_x else np.uint64(0)
        j, here = np.uint64(i - first), np.uint64(at)
        around[j], around[np.uint64(_BATCH) + j] = words[here], words[here + on_x]
        here += on_y
        around[np.uint64(2 * _BATCH) + j], around[np.uint64(3 * _BATCH) + j] = words[here], words[here + on_x]
        here += on_z
        around[np.uint64(6 * _BATCH) + j], around[np.uint64(7 * _BATCH) + j] = words[here], words[here + on_x]
        here -= on_y
        around[np.uint64(4 * _BATCH) + j], around[np.uint64(5 * _BATCH) + j] = words[here], words[here + on_x]
        i += 1
    return n


@kernel
def _is_inner(part: Any) -> Any:
    """Tell whether a place, of the part of it within its voxel, is `SAFE`."""
    return part - np.uint64(SAFE) <= np.uint64(_UNIT - 1 - 2 * SAFE)


@kernel
def _advance(size: Any, least: Any, most: Any, start: Any, n: Any, paths: Any, around: Any) -> None:
    """Take a step of ``n`` paths from ``start`` on; the weights of the words around add up to 1 << 16.

    Indices are unsigned: signed ones could count from the end, and the loop would not become vector instructions.
    """
    height, width = size[1], size[2]
    least_z, least_y, least_x = least[0], least[1], least[2]
    most_z, most_y, most_x = most[0], most[1], most[2]
    last_z, last_y, last_x = (size[0] - 1) * _UNIT, (height - 1) * _UNIT, (width - 1) * _UNIT
    low, low_half, half = np.uint64(_UNIT - 1), np.uint64(0xFFFFFFFF), np.uint64(1 << 15)
    bits, fine, full = np.uint64(BITS), np.uint64(16 - BITS), np.uint64(1 << 16)
    word, pair, begin = np.uint64(16), np.uint64(32), np.uint64(start)
    z_and_y, x_and_unknown = np.uint64(_Z_AND_Y), np.uint64(_X_AND_UNKNOWN)
    on_y, on_x = np.uint64(_ROOM), np.uint64(2 * _ROOM)
    for k in range(n):
        j = np.uint64(k)
        i = begin + j
        z, y, x = np.int64(paths[i]), np.int64(paths[on_y + i]), np.int64(paths[on_x + i])
        w, v, u = np.uint64(z) & low, np.uint64(y) & low, np.uint64(x) & low
        w1 = w << fine
        w0 = full - w1
        w11, w01 = (w1 * v) >> bits, (w0 * v) >> bits
        w10, w00 = w1 - w11, w0 - w01
        more = (w00 * u) >> bits
        less, value, other = w00 - more, around[j], around[np.uint64(_BATCH) + j]
        zy = (value & z_and_y) * less + (other & z_and_y) * more
        xu = ((value >> word) & x_and_unknown) * less + ((other >> word) & x_and_unknown) * more
        more = (w01 * u) >> bits
        less, value, other = w01 - more, around[np.uint64(2 * _BATCH) + j], around[np.uint64(3 * _BATCH) + j]
        zy += (value & z_and_y) * less + (other & z_and_y) * more
        xu += ((value >> word) & x_and_unknown) * less + ((other >> word) & x_and_unknown) * more
        more = (w10 * u) >> bits
        less, value, other = w10 - more, around[np.uint64(4 * _BATCH) + j], around[np.uint64(5 * _BATCH) + j]
        zy += (value & z_and_y) * less + (other & z_and_y) * more
        xu += ((value >> word) & x_and_unknown) * less + ((other >> word) & x_and_unknown) * more
        more = (w11 * u) >> bits
        less, value, other = w11 - more, around[np.uint64(6 * _BATCH) + j], around[np.uint64(7 * _BATCH) + j]
        zy += (value & z_and_y) * less + (other & z_and_y) * more
        xu += ((value >> word) & x_and_unknown) * less + ((other >> word) & x_and_unknown) * more
        a = z + np.int64(((zy & low_half) + half) >> word) - ZERO
        b = y + np.int64(((zy >> pair) + half) >> word) - ZERO
        c = x + np.int64(((xu & low_half) + half) >> word) - ZERO
        is_out = (a < least_z) | (a >= most_z) | (b < least_y) | (b >= most_y) | (c < least_x) | (c >= most_x)
        is_lost = is_out | (xu >> pair != np.uint64(0))
        a, b, c = min(last_z, max(np.int64(0), a)), min(last_y, max(np.int64(0), b)), min(last_x, max(np.int64(0), c))
        at = np.uint64(_BEFORE) + i
        back_z, back_y, back_x = abs(a - paths[at]), abs(b - paths[on_y + at]), abs(c - paths[on_x + at])
        paths[at], paths[on_y + at], paths[on_x + at] = z, y, x
        is_safe = _is_inner(w) & _is_inner(v) & _is_inner(u)
        is_safe &= _is_inner(np.uint64(a) & low) & _is_inner(np.uint64(b) & low) & _is_inner(np.uint64(c) & low)
        at = np.uint64(_MARK) + i
        is_met = (paths[at] == a) & (paths[on_y + at] == b) & (paths[on_x + at] == c)
        paths[i], paths[on_y + i], paths[on_x + i] = a, b, c
        paths[np.uint64(_AT) + i] = ((a >> BITS) * height + (b >> BITS)) * width + (c >> BITS)
        is_back = (back_z <= NEAR) & (back_y <= NEAR) & (back_x <= NEAR) & is_safe
        found = np.int32(is_lost) * np.int32(_LEFT) | np.int32(is_met) * np.int32(_MET)
        paths[np.uint64(_FOUND) + i] = found | np.int32(is_back) * np.int32(_BACK)
