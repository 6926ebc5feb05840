"""Paths along a flow field in a volume.

As in `core.paths`, positions are whole numbers of 1/4096 px, counted from the window, so that a path is the same in
every window and comes to rest exactly. Here the field is kept in the same unit, in 8 bytes a voxel, and steps are
interpolated between the eight voxels around in whole numbers, with weights of 16 bits. Cellpose (3 and 4) samples
volumes half a voxel off at their ends, and less between, so that its paths depend on the shape of the volume. Ours are
interpolated truly, as they may not.

Near a sink steps are about 1 px long still, and paths go to and fro over it, nearer by nearer, for tens of steps: one
that comes within 1/512 px of where it was two steps before, and not as near to other voxels, goes on between the two it
is in, and is not followed there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.paths import BITS, NOWHERE
from spatialdata_segment.core.paths3d_kernel import INSIDE, UNKNOWN, ZERO, follow_all

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST = 3.0
"""px along an axis: longer steps are cut. The sums of the flows of two planes make steps of 2 px."""
JUMP = 3
"""Voxels that a step may lead on."""
LARGEST = 2**31 - 1
"""Voxels of a window, and 1/4096 px along an axis."""

_UNIT = 1 << BITS


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
    return field


def steps_of(field: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Return the steps ``(z, y, x, 3)`` of a packed field in px; NaN where it is not known."""
    parts = [(field >> np.uint64(shift) & np.uint64(0xFFFF)).astype(np.float32) - ZERO for shift in (0, 32, 16)]
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
    follow_all(field, edge, steps, np.array(box.start), ends)
    return ends


@kernel
def _fill_field(plane: Any, threshold: Any, per_step: Any, field: Any) -> None:
    unit, longest = np.float32(_UNIT), np.float32(LONGEST)
    nothing = np.uint64(ZERO << 32 | ZERO << 16 | ZERO)
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
                    word |= np.uint64(np.int64(cut) + ZERO) << np.uint64((0, 32, 16)[k])
            if value != value:
                word = nothing | np.uint64(UNKNOWN << 48)
            field[y, x] = word
