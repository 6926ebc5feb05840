"""How far into a window of a volume the paths from beyond it may come.

Paths enter voxels at 64 places (`core.paths3d`). Those from beyond are found by going along the paths from all places
that they may enter, each place of a voxel once: no bound, but the paths themselves. Bounds of where a whole voxel may
go, as `core.paths` has them, are too wide in a volume: along the borders of touching cells, where flows part, they
lead through all of a tissue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.paths import BITS
from spatialdata_segment.core.paths3d import ENTER, JUMP, UNKNOWN, entered, step_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ALL = 0xFFFF_FFFF_FFFF_FFFF


def reached(field: NDArray[np.uint64], edge: NDArray[np.int64], steps: int) -> NDArray[np.bool_]:
    """Mark the voxels in which a path from beyond the open sides, or from the unknown, may end or pass.

    No such voxel is left out, whatever the unseen flows are. Takes 8 bytes a voxel meanwhile.
    """
    places = np.zeros(field.shape, np.uint64)
    _reach(field, edge, steps, places)
    marked: NDArray[np.bool_] = places != 0
    return marked


@kernel
def _reach(field: Any, edge: Any, steps: Any, places: Any) -> None:
    """Go along the paths from all places of the voxels into which a step from what is not known may lead."""
    depth, height, width = field.shape
    words = field.reshape(-1)
    for z in range(depth):
        beside_z = (edge[0, 0] and z < JUMP) or (edge[0, 1] and z >= depth - 1 - JUMP)
        for y in range(height):
            beside_y = beside_z or (edge[1, 0] and y < JUMP) or (edge[1, 1] and y >= height - 1 - JUMP)
            for x in range(width):
                if beside_y or (edge[2, 0] and x < JUMP) or (edge[2, 1] and x >= width - 1 - JUMP):
                    _reach_from(words, edge, steps, places, z, y, x)
                if field[z, y, x] >= np.uint64(UNKNOWN << 48):
                    for a in range(max(0, z - 1 - JUMP), min(depth, z + JUMP + 1)):
                        for b in range(max(0, y - 1 - JUMP), min(height, y + JUMP + 1)):
                            for c in range(max(0, x - 1 - JUMP), min(width, x + JUMP + 1)):
                                _reach_from(words, edge, steps, places, a, b, c)


@kernel
def _reach_from(words: Any, edge: Any, steps: Any, places: Any, z: Any, y: Any, x: Any) -> None:
    if places[z, y, x] == np.uint64(_ALL):
        return
    for place in range(64):
        a, b, c = z, y, x
        while True:
            bit = np.uint64(1) << np.uint64(place)
            if places[a, b, c] & bit:
                break
            places[a, b, c] |= bit
            a, b, c, place = _leave(words, edge, steps, places.shape, a, b, c, place)
            if a < 0:
                break


@kernel
def _leave(words: Any, edge: Any, steps: Any, shape: Any, a: Any, b: Any, c: Any, place: Any) -> Any:
    """Return the voxel into which a path comes from a place of voxel (a, b, c), and where; -1 where it ends."""
    depth, height, width = shape
    last_z, last_y, last_x = (depth - 1) << BITS, (height - 1) << BITS, (width - 1) << BITS
    z = min(last_z, a << BITS | (place >> 4) << ENTER)
    y = min(last_y, b << BITS | (place >> 2 & 3) << ENTER)
    x = min(last_x, c << BITS | (place & 3) << ENTER)
    before_z, before_y, before_x = -1, -1, -1
    for _ in range(steps):
        step_z, step_y, step_x, is_known = step_at(words, height, width, z, y, x, z < last_z, y < last_y, x < last_x)
        new_z, new_y, new_x = z + step_z, y + step_y, x + step_x
        if (
            not is_known
            or (edge[0, 0] and new_z < 0)
            or (edge[1, 0] and new_y < 0)
            or (edge[2, 0] and new_x < 0)
            or (edge[0, 1] and new_z >= last_z)
            or (edge[1, 1] and new_y >= last_y)
            or (edge[2, 1] and new_x >= last_x)
        ):
            break  # what is not known begins here
        new_z, new_y, new_x = min(last_z, max(0, new_z)), min(last_y, max(0, new_y)), min(last_x, max(0, new_x))
        if (new_z ^ z | new_y ^ y | new_x ^ x) >> BITS != 0:
            new_z, new_y, new_x = entered(new_z), entered(new_y), entered(new_x)
            place = (new_z >> ENTER & 3) << 4 | (new_y >> ENTER & 3) << 2 | new_x >> ENTER & 3
            return new_z >> BITS, new_y >> BITS, new_x >> BITS, place
        if (new_z == z and new_y == y and new_x == x) or (
            new_z == before_z and new_y == before_y and new_x == before_x
        ):
            break
        before_z, before_y, before_x = z, y, x
        z, y, x = new_z, new_y, new_x
    return -1, -1, -1, 0
