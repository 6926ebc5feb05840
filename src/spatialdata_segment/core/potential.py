"""Objects grown over a potential, by rules that any window can decide or say that it cannot.

A way costs the sum of its steps: the length of a step (5, 7 or 9 through a face, an edge or a corner) times
the slowness of both of its pixels. Each pixel goes to the object of the cheapest way, in the total order (cost,
number of the object). Costs are integers above 0 and only ever add up, so that a window can bound what the
unseen may do: all that it may reach is left `UNRESOLVED`, and all else is as in the whole image.

The ridge that must be crossed to reach a pixel is the least possible maximum along a way of its own object; it is
bounded from both sides, by ways that are seen and by ways that may be.

Sources: R. Dial, "Algorithm 360: shortest-path forest with topological ordering" (1969), for the queue;
P. Soille, "Morphological Image Analysis" (2003), for basins behind a ridge (reconstruction by erosion).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.unresolved import UNRESOLVED

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNIT = 16
"""Slowness of a pixel that does not slow anything."""

NEVER = 256
"""Level of a pixel that no way leads to."""


def grow(
    slowness: NDArray[np.uint16], seeds: NDArray[np.int32], edge: NDArray[np.int64] | None = None
) -> NDArray[np.int32]:
    """Grow objects along the cheapest ways.

    Parameters
    ----------
    slowness
        ``(z, y, x)`` of the pixels, at least `UNIT`; 0 is a wall, through which there is no way.
    seeds
        ``(z, y, x)`` labels 1..n of what grows, 0 elsewhere; `UNRESOLVED` where the unseen may begin. They keep
        their pixels, on walls too, and grow from all of them.
    edge
        ``(3, 2)``: for every axis, whether its low and its high side are open (1) or the image's end (0); from
        beyond an open side the unseen comes in. None: the image is all there is.

    Returns
    -------
    ``(z, y, x)`` int32 labels, 0 where nothing grows to, `UNRESOLVED` where something unseen may.
    """
    labels = np.ascontiguousarray(seeds).astype(np.int32)
    _grow(np.ascontiguousarray(slowness), _closed(edge), labels)
    return labels


def ridges(level: NDArray[np.uint8], owner: NDArray[np.int32], start: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Return the height of the lowest ridge between each pixel and the nearest start, by ways that one owner holds.

    Parameters
    ----------
    level
        ``(z, y, x)`` heights.
    owner
        ``(z, y, x)`` labels, as `grow` returns them. A way leads through pixels of one label, none through 0; from
        what is `UNRESOLVED` it leads into any.
    start
        ``(z, y, x)``: where ways begin. On a label the height of a start does not count.

    Returns
    -------
    ``(z, y, x)`` uint16: the least possible maximum of a way to the pixel, itself included; `NEVER` where none leads.
    """
    out = np.full(level.shape, NEVER, np.uint16)
    _ridges(np.ascontiguousarray(level), np.ascontiguousarray(owner), start, out)
    return out


def _closed(edge: NDArray[np.int64] | None) -> NDArray[np.int64]:
    return np.zeros((3, 2), np.int64) if edge is None else edge


@kernel
def _is_open(edge: Any, shape: Any, z: Any, y: Any, x: Any) -> Any:
    """Whether a pixel has neighbours that the window does not show."""
    nz, ny, nx = shape
    low = (edge[0, 0] > 0 and z == 0) or (edge[1, 0] > 0 and y == 0) or (edge[2, 0] > 0 and x == 0)
    deep, bottom, right = z == nz - 1, y == ny - 1, x == nx - 1
    return low or (edge[0, 1] > 0 and deep) or (edge[1, 1] > 0 and bottom) or (edge[2, 1] > 0 and right)


@kernel
def _has_way(slow: Any, lab: Any, shape: Any, z: Any, y: Any, x: Any) -> Any:
    """Whether something can grow from a seed: it has a neighbour that is neither a wall nor a seed."""
    nz, ny, nx = shape
    for a in range(max(z - 1, 0), min(z + 2, nz)):
        for b in range(max(y - 1, 0), min(y + 2, ny)):
            for c in range(max(x - 1, 0), min(x + 2, nx)):
                q = (a * ny + b) * nx + c
                if slow[q] > 0 and lab[q] == 0:
                    return True
    return False


@kernel
def _grow(slowness: Any, edge: Any, labels: Any) -> Any:
    """Dijkstra with a ring of buckets, one for each cost that a step can add.

    Every step costs something: when the turn of a bucket comes, its pixels have seen all ways of that cost, and
    hold the least label.
    """
    nz, ny, nx = slowness.shape
    size = slowness.size
    slow = slowness.reshape(size)
    lab = labels.reshape(size)
    never = np.iinfo(np.int64).max
    best = np.full(size, never, np.int64)
    slowest = np.int64(UNIT)
    for p in range(size):
        slowest = max(slowest, np.int64(slow[p]))
    ring = 18 * slowest + 1
    head = np.full(ring, -1, np.int64)
    pixel = np.empty(1024, np.int64)
    below = np.arange(1, 1025)
    free, waiting = 0, 0
    for p in range(size):
        if lab[p] == 0:
            continue
        best[p] = 0
        if _has_way(slow, lab, (nz, ny, nx), p // (ny * nx), (p // nx) % ny, p % nx):
            pixel, below, free = _push(pixel, below, free, head, 0, p)
            waiting += 1
    for p in range(size):
        if lab[p] == 0 and slow[p] > 0 and _is_open(edge, (nz, ny, nx), p // (ny * nx), (p // nx) % ny, p % nx):
            best[p] = 5 * (UNIT + np.int64(slow[p]))  # what comes from outside has paid for this step at least
            lab[p] = UNRESOLVED
            pixel, below, free = _push(pixel, below, free, head, best[p], p)
            waiting += 1
    cost = np.int64(-1)
    while waiting > 0:
        cost += 1
        bucket = cost % ring
        while head[bucket] >= 0:
            at = head[bucket]
            head[bucket] = below[at]
            below[at] = free
            free = at
            waiting -= 1
            p = pixel[at]
            if best[p] != cost:
                continue
            here = max(np.int64(slow[p]), np.int64(UNIT))
            z, y, x = p // (ny * nx), (p // nx) % ny, p % nx
            for dz in range(-1 if z > 0 else 0, 2 if z < nz - 1 else 1):
                for dy in range(-1 if y > 0 else 0, 2 if y < ny - 1 else 1):
                    for dx in range(-1 if x > 0 else 0, 2 if x < nx - 1 else 1):
                        q = p + (dz * ny + dy) * nx + dx
                        if slow[q] == 0 or best[q] <= cost:
                            continue
                        there = cost + (3 + 2 * (abs(dz) + abs(dy) + abs(dx))) * (here + np.int64(slow[q]))
                        if there == best[q]:
                            lab[q] = min(lab[q], lab[p])
                        elif there < best[q]:
                            best[q] = there
                            lab[q] = lab[p]
                            pixel, below, free = _push(pixel, below, free, head, there % ring, q)
                            waiting += 1


@kernel
def _push(pixel: Any, below: Any, free: Any, head: Any, bucket: Any, p: Any) -> Any:
    """Put a pixel on a bucket's stack; the stacks share one store, which grows."""
    n = pixel.size
    if free == n:
        wider, under = np.empty(2 * n, np.int64), np.arange(1, 2 * n + 1)
        wider[:n] = pixel
        under[:n] = below
        pixel, below = wider, under
    after = below[free]
    pixel[free] = p
    below[free] = head[bucket]
    head[bucket] = free
    return pixel, below, after


@kernel
def _ridges(level: Any, owner: Any, start: Any, out: Any) -> Any:
    """Flood level by level. A pixel is reached first from the lowest: once is enough."""
    nz, ny, nx = level.shape
    height, own, begin, best = level.reshape(-1), owner.reshape(-1), start.reshape(-1), out.reshape(-1)
    head = np.full(NEVER, -1, np.int64)
    below = np.empty(height.size, np.int64)
    for p in range(height.size):
        if begin[p]:
            best[p] = 0 if own[p] > 0 else height[p]
            below[p] = head[best[p]]
            head[best[p]] = p
    for now in range(NEVER):
        while head[now] >= 0:
            p = head[now]
            head[now] = below[p]
            z, y, x = p // (ny * nx), (p // nx) % ny, p % nx
            for a in range(max(z - 1, 0), min(z + 2, nz)):
                for b in range(max(y - 1, 0), min(y + 2, ny)):
                    for c in range(max(x - 1, 0), min(x + 2, nx)):
                        q = (a * ny + b) * nx + c
                        mine = own[q] == own[p] or own[p] == UNRESOLVED
                        if mine and own[q] != 0 and best[q] == NEVER:
                            best[q] = max(now, np.int64(height[q]))
                            below[q] = head[best[q]]
                            head[best[q]] = q
