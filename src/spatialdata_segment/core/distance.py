"""Exact squared Euclidean distances on integers, and which of them a window can know.

Integers keep the distances of a window equal, bit for bit, to those of the whole image.

Source of the method: A. Meijster, J. Roerdink, W. Hesselink, "A general algorithm for computing distance
transforms in linear time" (2000).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

from spatialdata_segment.core.plan import Window

_FARTHEST = 1 << 15
"""px: beyond it no distance is told from another."""
FAR = _FARTHEST**2
"""Squared distance of a pixel where there is no background as far as that."""


def squared_distance(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Squared distance, in pixels, of every foreground pixel to the nearest background pixel.

    Parameters
    ----------
    mask
        ``(z, y, x)``; true is foreground. What lies outside the array is not background.

    Returns
    -------
    ``(z, y, x)`` int32, 0 on the background, `FAR` at most.
    """
    out = np.empty(mask.shape, np.int32)
    _columns(np.ascontiguousarray(mask), out)
    _envelope(out, 2)
    if mask.shape[0] > 1:
        _envelope(out, 0)
    return out


def unknown(squared: NDArray[np.int32], window: Window, margin: tuple[int, ...]) -> NDArray[np.bool_]:
    """Foreground pixels that the window cannot know.

    Their distance may be smaller in the whole image, or what lies outside may reach them first: all that
    stand at an open side.

    Parameters
    ----------
    squared
        ``(z, y, x)``, the distances seen in ``window.shrink(margin)``.
    window
        Its open sides hide pixels that may be background.
    margin
        Pixels at the open sides that are not to be trusted, per axis.
    """
    box = window.shrink(margin)
    reach = [_reach(n, lo, hi) for n, lo, hi in zip(box.shape, window.open_low, window.open_high, strict=True)]
    while len(reach) < 3:
        reach.insert(0, np.full(1, FAR, np.int64))
    out = np.empty(squared.shape, np.bool_)
    _beyond(squared, reach[0], reach[1], reach[2], out)
    return out


def _reach(length: int, low: bool, high: bool) -> NDArray[np.int64]:
    """Pixels from each index to the first one that is unseen."""
    at = np.arange(length, dtype=np.int64)
    out = np.full(length, FAR, np.int64)
    if low:
        np.minimum(out, at + 1, out=out)
    if high:
        np.minimum(out, length - at, out=out)
    return out


@kernel
def _beyond(squared: Any, rz: Any, ry: Any, rx: Any, out: Any) -> Any:
    nz, ny, nx = squared.shape
    for z in range(nz):
        for y in range(ny):
            near = min(rz[z], ry[y])
            for x in range(nx):
                e = min(near, rx[x])
                d = squared[z, y, x]
                out[z, y, x] = d > 0 and (e == 1 or (e < 1 << 20 and d > e * e))


@kernel
def _columns(mask: Any, out: Any) -> Any:
    """Squared distance along y."""
    nz, ny, nx = mask.shape
    big = np.int64(_FARTHEST)
    for z in range(nz):
        for x in range(nx):
            out[z, 0, x] = big if mask[z, 0, x] else 0
        for y in range(1, ny):
            for x in range(nx):
                out[z, y, x] = min(out[z, y - 1, x] + 1, big) if mask[z, y, x] else 0
        for y in range(ny - 2, -1, -1):
            for x in range(nx):
                out[z, y, x] = min(out[z, y, x], out[z, y + 1, x] + 1)
        for y in range(ny):
            for x in range(nx):
                out[z, y, x] *= out[z, y, x]


@kernel
def _envelope(f: Any, axis: Any) -> Any:
    """Replace every line of ``f`` along ``axis`` (0 or 2) by the lower envelope of its parabolas."""
    nz, ny, nx = f.shape
    n = nx if axis == 2 else nz
    lines = nz * ny if axis == 2 else ny * nx
    g = np.empty(n, np.int64)
    vertex = np.empty(n, np.int64)
    start = np.empty(n, np.int64)
    for line in range(lines):
        zero = True
        for i in range(n):
            g[i] = f[line // ny, line % ny, i] if axis == 2 else f[i, line // nx, line % nx]
            zero = zero and g[i] == 0
        if zero:
            continue
        last = 0
        vertex[0] = 0
        start[0] = 0
        for u in range(1, n):
            while last >= 0 and _lies_below(g, u, vertex[last], start[last]):
                last -= 1
            if last < 0:
                last = 0
                vertex[0] = u
                start[0] = 0
            else:
                i = vertex[last]
                first = 1 + (u * u - i * i + g[u] - g[i]) // (2 * (u - i))
                if first < n:
                    last += 1
                    vertex[last] = u
                    start[last] = first
        for u in range(n - 1, -1, -1):
            i = vertex[last]
            value = min((u - i) * (u - i) + g[i], FAR)
            if axis == 2:
                f[line // ny, line % ny, u] = value
            else:
                f[u, line // nx, line % nx] = value
            if u == start[last]:
                last -= 1


@kernel
def _lies_below(g: Any, u: Any, i: Any, at: Any) -> Any:
    return (at - i) * (at - i) + g[i] > (at - u) * (at - u) + g[u]
