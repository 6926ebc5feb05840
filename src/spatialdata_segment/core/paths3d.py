"""Paths along a flow field in a volume.

As in `core.paths`, positions are whole numbers of 1/4096 px, counted from the window, so that a path is the same in
every window and comes to rest exactly. Here the field is kept in the same unit, in 8 bytes a voxel, and steps are
interpolated between the eight voxels around in whole numbers, with weights of 16 bits. Cellpose (3 and 4) samples
volumes half a voxel off at their ends, and less between, so that its paths depend on the shape of the volume. Ours are
interpolated truly, as they may not.

Many paths end in a voxel that none ever leaves: the steps from its eight corners all lead into it again, and so do
those from between them, which are weighted means. They are marked in the field, and a path that enters one is at its
end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.paths import BITS, LOST, NOWHERE

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST = 3.0
"""px along an axis: longer steps are cut. The sums of the flows of two planes make steps of 2 px."""
JUMP = 3
"""Voxels that a step may lead on."""
LARGEST = 2**31 - 1
"""Voxels of a window, and 1/4096 px along an axis."""

# A voxel's word: the steps along z, x and y in 16 bits each, 0 at _ZERO, from the lowest bits on; then its marks. Two
# of them are weighted at once: the sum of 16 bits by weights of 16 bits takes 32.
_UNIT = 1 << BITS
_ZERO = 1 << 15
INSIDE, RESTS, UNKNOWN = 1, 2, 4
_Z_AND_Y, _X_AND_UNKNOWN = 0xFFFF_0000_FFFF, UNKNOWN << 32 | 0xFFFF
_BLOCK = 8
_SURE = 2
"""1/4096 px by which a step that is interpolated may miss the mean of those around."""


def flow_field(
    flows: NDArray[np.floating], inside: NDArray[np.floating], threshold: float, per_step: float = 5.0
) -> NDArray[np.uint64]:
    """Return the steps of paths in 1/4096 px, packed, ``(z, y, x)``; of the maps one plane at a time is copied.

    Parameters
    ----------
    flows
        ``(3, z, y, x)`` along z, y and x, ``per_step`` a px of a step, of any floating type.
    inside
        ``(z, y, x)``: voxels above ``threshold`` have a path, all others a flow of 0; NaN where the maps are not
        known.
    """
    field = np.empty(inside.shape, np.uint64)
    plane = np.empty((4, *inside.shape[1:]), np.float32)
    for z in range(len(inside)):
        plane[:3], plane[3] = flows[:, z], inside[z]
        _fill_field(plane, np.float32(threshold), np.float32(per_step), field[z])
    _mark_rests(field)
    return field


def steps_of(field: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Return the steps ``(z, y, x, 3)`` of a packed field in px; NaN where it is not known."""
    parts = [(field >> np.uint64(shift) & np.uint64(0xFFFF)).astype(np.float32) - _ZERO for shift in (0, 32, 16)]
    steps = np.stack(parts, axis=3) / np.float32(_UNIT)
    steps[field >= np.uint64(UNKNOWN << 48)] = np.nan
    return steps


def unknown(field: NDArray[np.uint64]) -> bool:
    """Tell whether a part of a packed field is not known."""
    return bool(field.max(initial=np.uint64(0)) >= np.uint64(UNKNOWN << 48))


def follow(
    field: NDArray[np.uint64], edge: NDArray[np.int64], steps: int, starts: Box | None = None
) -> NDArray[np.int32]:
    """Follow the paths of all voxels that have one.

    Parameters
    ----------
    field
        As `flow_field` makes it.
    edge
        ``(3, 2)``: for each axis, whether its low and its high side are open (1) or the volume's end (0), where
        paths stop.
    steps
        Of each path.
    starts
        Voxels ``(z, y, x)`` whose paths are followed; None: all.

    Returns
    -------
    Of ``starts``: the flat index, in the field, of the voxel in which each path ends, `NOWHERE` where none starts, or
    `LOST`.
    """
    box = Box.whole(field.shape) if starts is None else starts
    ends = np.full(box.shape, NOWHERE, np.int32)
    _follow(field, edge, steps, np.array(box.start), ends)
    return ends


@kernel
def _fill_field(plane: Any, threshold: Any, per_step: Any, field: Any) -> None:
    unit, longest = np.float32(_UNIT), np.float32(LONGEST)
    nothing = np.uint64(_ZERO << 32 | _ZERO << 16 | _ZERO)
    for y in range(plane.shape[1]):
        for x in range(plane.shape[2]):
            value = plane[3, y, x]
            word = nothing
            if value > threshold:
                word = np.uint64(INSIDE << 48)
                for k in range(3):
                    step = plane[k, y, x] / per_step
                    value += step
                    cut = np.rint(min(longest, max(-longest, step)) * unit) if step == step else np.float32(0)
                    word |= np.uint64(np.int64(cut) + _ZERO) << np.uint64((0, 32, 16)[k])
            if value != value:
                word = nothing | np.uint64(UNKNOWN << 48)
            field[y, x] = word


@kernel
def _mark_rests(field: Any) -> None:
    """Mark the voxels that no path leaves: from each of its corners a step leads into it, by `_SURE`."""
    depth, height, width = field.shape
    for z in range(depth - 1):
        for y in range(height - 1):
            for x in range(width - 1):
                rests = True
                for corner in range(8):
                    up, down, along = corner >> 2, corner >> 1 & 1, corner & 1
                    word = field[z + up, y + down, x + along]
                    if word >= np.uint64(UNKNOWN << 48):
                        rests = False
                        break
                    step_z = np.int64(word & np.uint64(0xFFFF)) - _ZERO + (up << BITS)
                    step_x = np.int64(word >> np.uint64(16) & np.uint64(0xFFFF)) - _ZERO + (along << BITS)
                    step_y = np.int64(word >> np.uint64(32) & np.uint64(0xFFFF)) - _ZERO + (down << BITS)
                    if min(step_z, step_y, step_x) < _SURE or max(step_z, step_y, step_x) >= _UNIT - _SURE:
                        rests = False
                        break
                if rests:
                    field[z, y, x] |= np.uint64(RESTS << 48)


@kernel
def _follow(field: Any, edge: Any, steps: Any, start: Any, ends: Any) -> None:
    """Follow paths, a block of them at once: their steps do not wait for each other.

    Positions are whole numbers, so that a path comes to rest, to go to and fro, or round and round, mostly soon. Where
    it was after 1, 2, 4, 8 ... steps is remembered; once it is there again, what is left is less than one round.
    """
    depth, height, width = field.shape
    rows, columns = ends.shape[1], ends.shape[2]
    last = (depth - 1) * _UNIT, (height - 1) * _UNIT, (width - 1) * _UNIT
    words, out = field.reshape(-1), ends.reshape(-1)
    room = _BLOCK * _BLOCK * _BLOCK
    at, voxel = np.empty((room, 3), np.int32), np.empty(room, np.int32)
    before, mark, until = np.empty((room, 3), np.int32), np.empty((room, 3), np.int32), np.empty(room, np.int32)
    least, most = np.empty(3, np.int64), np.empty(3, np.int64)
    for k in range(3):
        least[k], most[k] = 0 if edge[k, 0] else -(1 << 40), last[k] if edge[k, 1] else 1 << 40
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
                            elif word & np.uint64(INSIDE << 48) and word & np.uint64(RESTS << 48):
                                out[here] = (a * height + b) * width + c
                            elif word & np.uint64(INSIDE << 48):
                                at[n, 0], at[n, 1], at[n, 2], voxel[n] = a * _UNIT, b * _UNIT, c * _UNIT, here
                                before[n, 0] = before[n, 1] = before[n, 2] = mark[n, 0] = mark[n, 1] = mark[n, 2] = -1
                                until[n] = steps
                                n += 1
                _follow_block(words, height, width, last, least, most, steps, n, at, before, mark, until, voxel, out)


@kernel
def _follow_block(
    words: Any, height: Any, width: Any, last: Any, least: Any, most: Any, steps: Any,
    n: Any, at: Any, before: Any, mark: Any, until: Any, voxel: Any, ends: Any,
) -> None:  # fmt: skip
    least_z, least_y, least_x = least[0], least[1], least[2]
    most_z, most_y, most_x = most[0], most[1], most[2]
    last_z, last_y, last_x = last
    marked = 0
    for t in range(1, steps + 1):
        moving, marks = 0, t & (t - 1) == 0
        for i in range(n):
            z, y, x = np.int64(at[i, 0]), np.int64(at[i, 1]), np.int64(at[i, 2])
            step_z, step_y, step_x, is_known = step_at(
                words, height, width, z, y, x, z < last_z, y < last_y, x < last_x
            )
            a, b, c = z + step_z, y + step_y, x + step_x
            is_in = a >= least_z and a < most_z and b >= least_y and b < most_y and c >= least_x and c < most_x
            if not is_in or not is_known:
                ends[voxel[i]] = LOST
                continue
            a, b, c = min(last_z, max(0, a)), min(last_y, max(0, b)), min(last_x, max(0, c))
            there = ((a >> BITS) * height + (b >> BITS)) * width + (c >> BITS)
            if a == before[i, 0] and b == before[i, 1] and c == before[i, 2]:
                here = ((z >> BITS) * height + (y >> BITS)) * width + (x >> BITS)
                ends[voxel[i]] = there if (steps - t) % 2 == 0 else here
                continue
            left = until[i]
            if left == steps and a == mark[i, 0] and b == mark[i, 1] and c == mark[i, 2]:
                left = t + (steps - t) % (t - marked)
            if left == t or words[there] & np.uint64(RESTS << 48) or (a == z and b == y and c == x):
                ends[voxel[i]] = there
                continue
            if marks:
                mark[moving, 0], mark[moving, 1], mark[moving, 2] = a, b, c
            else:
                mark[moving, 0], mark[moving, 1], mark[moving, 2] = mark[i, 0], mark[i, 1], mark[i, 2]
            before[moving, 0], before[moving, 1], before[moving, 2] = z, y, x
            at[moving, 0], at[moving, 1], at[moving, 2], voxel[moving], until[moving] = a, b, c, voxel[i], left
            moving += 1
        if marks:
            marked = t
        n = moving
        if n == 0:
            break


@kernel
def step_at(words: Any, height: Any, width: Any, z: Any, y: Any, x: Any, more_z: Any, more_y: Any, more_x: Any) -> Any:
    """Interpolate the step at a position; the weights add up to 1 << 16. Unsigned, for speed."""
    bits, fine, half, full = np.uint64(BITS), np.uint64(16 - BITS), np.uint64(1 << 15), np.uint64(1 << 16)
    low, low_half = np.uint64(_UNIT - 1), np.uint64(0xFFFFFFFF)
    word, pair = np.uint64(16), np.uint64(32)
    z_and_y, x_and_unknown = np.uint64(_Z_AND_Y), np.uint64(_X_AND_UNKNOWN)
    c, b, a = np.uint64(z), np.uint64(y), np.uint64(x)
    first = ((c >> bits) * np.uint64(height) + (b >> bits)) * np.uint64(width) + (a >> bits)
    on_z = np.uint64(height * width) if more_z else np.uint64(0)
    on_y = np.uint64(width) if more_y else np.uint64(0)
    on_x = np.uint64(1) if more_x else np.uint64(0)
    w, v, u = c & low, b & low, a & low
    w1 = w << fine
    w0 = full - w1
    w11, w01 = (w1 * v) >> bits, (w0 * v) >> bits
    w10, w00 = w1 - w11, w0 - w01
    part = (w00 * u) >> bits
    value, other = words[first], words[first + on_x]
    zy = (value & z_and_y) * (w00 - part) + (other & z_and_y) * part
    xu = ((value >> word) & x_and_unknown) * (w00 - part) + ((other >> word) & x_and_unknown) * part
    part, first = (w01 * u) >> bits, first + on_y
    value, other = words[first], words[first + on_x]
    zy += (value & z_and_y) * (w01 - part) + (other & z_and_y) * part
    xu += ((value >> word) & x_and_unknown) * (w01 - part) + ((other >> word) & x_and_unknown) * part
    part, first = (w11 * u) >> bits, first + on_z
    value, other = words[first], words[first + on_x]
    zy += (value & z_and_y) * (w11 - part) + (other & z_and_y) * part
    xu += ((value >> word) & x_and_unknown) * (w11 - part) + ((other >> word) & x_and_unknown) * part
    part, first = (w10 * u) >> bits, first - on_y
    value, other = words[first], words[first + on_x]
    zy += (value & z_and_y) * (w10 - part) + (other & z_and_y) * part
    xu += ((value >> word) & x_and_unknown) * (w10 - part) + ((other >> word) & x_and_unknown) * part
    return (
        np.int64(((zy & low_half) + half) >> word) - _ZERO,
        np.int64(((zy >> pair) + half) >> word) - _ZERO,
        np.int64(((xu & low_half) + half) >> word) - _ZERO,
        xu >> pair == np.uint64(0),
    )
