"""Volumes: the network on the planes along all three axes, whose flows add up.

Source: Cellpose with ``do_3D=True`` (Stringer et al. 2021; versions 3 and 4). Of the planes XY the network tells the
flows along y and x, of ZX those along z and x, of ZY those along z and y: of each direction there are two, and three
cell probabilities, whose sums are the maps. They are summed as they come, and none is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.flows3d import count_ends_3d, decode_flows_3d
from spatialdata_segment.core.resize import resize_volume
from spatialdata_segment.core.sinks3d import SEEN
from spatialdata_segment.methods.cellpose.grid import tiled

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from spatialdata_segment.core.flows import FlowObjects, FlowRules
    from spatialdata_segment.core.plan import Window
    from spatialdata_segment.core.tiles import Tiling
    from spatialdata_segment.methods.base import View
    from spatialdata_segment.methods.cellpose.grid import Resized
    from spatialdata_segment.methods.cellpose.run import Network

SLAB_BYTES = 64e6
"""Of the planes that are read at once, about."""

Sigma = tuple[float, float, float]


def smoothing_radius(sigma: Sigma) -> tuple[int, ...]:
    """Return how many voxels around a voxel a Gaussian reaches, as SciPy cuts it."""
    return tuple(int(4.0 * s + 0.5) for s in sigma)


def volume_maps(
    network: Network,
    look: Callable[[Box, int], NDArray[np.float32]],
    layout: Callable[[tuple[int, int]], Tiling],
    grid: Resized,
    window: Box,
    sigma: Sigma,
    *,
    resample: bool,
) -> NDArray[np.float32]:
    """Return the maps ``(4, z, y, x)`` of a window: flows along z, y and x, and the logit of the cell probability.

    Parameters
    ----------
    network
        What runs on planes.
    look
        Returns the voxels ``(c, z, y, x)`` that the network sees, of a box of its grid and in planes along an axis.
    layout
        Returns the tiles of a plane of some shape.
    grid
        Of the volume, and of the network.
    window
        ``(z, y, x)`` of the volume.
    sigma
        Voxels along ``(z, y, x)`` of the Gaussian that flows are smoothed by; 0: they are not.
    resample
        True: the maps are those of the window's voxels. False: of the voxels to the network that `Resized.picked` has.
    """
    radius = smoothing_radius(sigma)
    if resample:
        inner, whole = window, Box.whole(grid.image)
        wide = inner.grow(radius, whole)
        box = grid.needed(wide)
    else:
        inner, whole = grid.picked(window), Box.whole(grid.seen)
        wide = box = inner.grow(radius, whole)
    maps = _summed(network, look, layout, grid, box)
    if resample and not grid.is_same:
        planes, rows, columns = grid.to_image(wide)
        maps = resize_volume(maps, box.start, planes, rows, columns)
    if any(radius):
        for flow in maps[:3]:
            gaussian_filter(flow, sigma, output=flow, radius=radius)
        maps = maps[(slice(None), *inner.within(wide))]
    return maps


def _summed(
    network: Network,
    look: Callable[[Box, int], NDArray[np.float32]],
    layout: Callable[[tuple[int, int]], Tiling],
    grid: Resized,
    box: Box,
) -> NDArray[np.float32]:
    """Return the sums of what the network says of the planes through a box of its grid."""
    out = np.zeros((4, *box.shape), np.float32)
    for axis in range(3):
        first, second = (k for k in range(3) if k != axis)
        tiling = layout((grid.seen[first], grid.seen[second]))
        wanted = _plane(box, first, second)
        held = tiled(tiling, wanted)
        at_once = _thickness(grid, held, axis)
        for start in range(box.start[axis], box.stop[axis], at_once):
            slab = _slab(held, axis, start, min(start + at_once, box.stop[axis]))
            images = np.moveaxis(look(slab, axis), axis + 1, 0)
            for at, maps in enumerate(network.planes(images, held.start, tiling, wanted), start - box.start[axis]):
                here = tuple(at if k == axis else slice(None) for k in range(3))
                for part, to in enumerate((first, second, 3)):
                    out[(to, *here)] += maps[part]
    return out


def _plane(box: Box, first: int, second: int) -> Box:
    return Box((box.start[first], box.start[second]), (box.stop[first], box.stop[second]))


def _slab(plane: Box, axis: int, start: int, stop: int) -> Box:
    """Return a box that is ``plane`` across an axis."""
    low, high = list(plane.start), list(plane.stop)
    low.insert(axis, start)
    high.insert(axis, stop)
    return Box(tuple(low), tuple(high))


def _thickness(grid: Resized, held: Box, axis: int) -> int:
    """Return how many planes are looked at at once."""
    read = grid.source(_slab(held, axis, 0, 1)).size
    return max(1, int(SLAB_BYTES / (8.0 * (held.size + read))))


def count_ends(maps: NDArray[Any], window: Window, box: Box, own: Box, rules: FlowRules) -> NDArray[np.int32] | None:
    """Return how many paths from the voxels ``own`` end in each voxel of ``box``, a window's; see `Method.tally`."""
    starts = Box(*(tuple(np.subtract(side, box.start).tolist()) for side in (own.start, own.stop)))
    return count_ends_3d(maps, window.edge, rules, starts)


def decode_window(
    maps: NDArray[Any],
    view: View,
    box: Box,
    whole: Box,
    rules: FlowRules,
    pick: tuple[NDArray[np.int64], ...] | None = None,
) -> FlowObjects:
    """Decode the maps of a window of a volume.

    Parameters
    ----------
    maps, view
        See `Method.decode`.
    box, whole
        Where the maps lie in the grid of all maps, and that grid.
    rules, pick
        See `decode_flows_3d`.
    """
    assert view.tally is not None
    known = box.grow((SEEN,) * 3, whole)
    before = tuple(np.subtract(box.start, known.start).tolist())
    return decode_flows_3d(maps, view.window.edge, rules, view.tally(known), before, pick)
