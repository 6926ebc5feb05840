"""Distance peaks and the flood from them, by rules that any window can decide or say that it cannot.

A peak is a pixel whose distance is the greatest of all that it can see within a radius; ties fall to the
first pixel in raster order. The flood gives every foreground pixel to the peak of the cheapest path, in
the total order (cost, position of the peak). A step costs more the nearer it passes to the background, so
that neighbours part at the neck between them. Costs are integers and only ever add up: a cheaper start
never makes a dearer end, hence a window can bound what the unseen may do. All that it may reach is left
`UNRESOLVED`; all else is as in the whole image.

The order replaces the heap age by which the watershed of scikit-image breaks its ties, and which differs
between windows. Source of the geodesic form: F. Meyer, "Topographic distance and watershed lines" (1994).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.unresolved import complete

if TYPE_CHECKING:
    from numpy.typing import NDArray


def peaks(
    squared: NDArray[np.int32], unknown: NDArray[np.bool_], edge: NDArray[np.int64], radius: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the distance peaks of a mask.

    Parameters
    ----------
    squared
        ``(z, y, x)`` squared distances to the background.
    unknown
        ``(z, y, x)`` pixels whose distance the window cannot know.
    edge
        ``(3, 2)``: for every axis, whether its low and its high side are open (1) or the image's end (0).
    radius
        Pixels within which a peak must be the greatest.

    Returns
    -------
    ``(n, 3)`` peaks, and ``(m, 3)`` pixels that may or may not be peaks, both in raster order.
    """
    found, unsure = _peaks(squared, unknown, edge, radius)
    return found, unsure


def spaced_peaks(
    squared: NDArray[np.int32], unknown: NDArray[np.bool_], edge: NDArray[np.int64], footprint: int, spacing: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the distance peaks of a mask as ``skimage.feature.peak_local_max`` does: seen or not, ties and all.

    Of those that are less than ``spacing`` apart along every axis the greater stays, then the first in raster
    order. That may chain, as along a ridge of equal distances; where a chain leaves the window, it is unsure.

    Parameters
    ----------
    squared, unknown, edge
        As for `peaks`.
    footprint
        Radius of the disk in which no pixel is greater.
    spacing
        Pixels.

    Returns
    -------
    As `peaks`. Unlike scikit-image's, peaks at the border of the image stay.
    """
    found, unsure = _spaced(squared, unknown, edge, footprint, spacing)
    return found, unsure


def flood(
    squared: NDArray[np.int32],
    seeds: NDArray[np.int64],
    unknown: NDArray[np.bool_],
    unsure: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Flood the foreground from its seeds.

    Parameters
    ----------
    squared
        ``(z, y, x)`` squared distances to the background, 0 on it.
    seeds
        ``(n, 3)`` in raster order; their labels are 1..n.
    unknown
        ``(z, y, x)`` foreground that the unseen may reach at no cost.
    unsure
        ``(m, 3)`` pixels that may be seeds.

    Returns
    -------
    ``(z, y, x)`` int32 labels, `UNRESOLVED` where the unseen may have won; and ``(n,)`` bool, the objects
    that touch no such pixel: they are as in the whole image.
    """
    labels = np.zeros(squared.shape, np.int32)
    _flood(squared, seeds, unknown, unsure, labels, np.empty(1024, index_dtype(squared.size)))
    return labels, complete(labels, len(seeds))


@kernel
def _sees(squared: Any, z: Any, y: Any, x: Any, dz: Any, dy: Any, dx: Any) -> Any:
    """Whether the straight line between two pixels stays on the foreground."""
    steps = max(abs(dz), max(abs(dy), abs(dx)))
    for t in range(1, steps):
        a = z + (2 * dz * t + steps) // (2 * steps)
        b = y + (2 * dy * t + steps) // (2 * steps)
        c = x + (2 * dx * t + steps) // (2 * steps)
        if squared[a, b, c] == 0:
            return False
    return True


@kernel
def _rank(squared: Any, unknown: Any, edge: Any, z: Any, y: Any, x: Any, radius: Any) -> Any:
    """2: nothing that the pixel sees within the radius is greater. 1: nothing known is. 0: something is."""
    nz, ny, nx = squared.shape
    here = squared[z, y, x]
    sure = not unknown[z, y, x]
    for dz in range(-min(radius, nz - 1), min(radius, nz - 1) + 1):
        a = z + dz
        if a < 0 or a >= nz:
            sure = sure and edge[0, 0 if a < 0 else 1] == 0
            continue
        for dy in range(-radius, radius + 1):
            b = y + dy
            if b < 0 or b >= ny:
                sure = sure and edge[1, 0 if b < 0 else 1] == 0
                continue
            for dx in range(-radius, radius + 1):
                c = x + dx
                if dz * dz + dy * dy + dx * dx > radius * radius:
                    continue
                if c < 0 or c >= nx:
                    sure = sure and edge[2, 0 if c < 0 else 1] == 0
                    continue
                there = squared[a, b, c]
                if there == 0 or (dz == 0 and dy == 0 and dx == 0):
                    continue
                earlier = dz < 0 or (dz == 0 and (dy < 0 or (dy == 0 and dx < 0)))
                if unknown[a, b, c]:
                    if (there > here or (there == here and earlier)) and _sees(squared, z, y, x, dz, dy, dx):
                        sure = False
                elif (there > here or (there == here and earlier)) and _sees(squared, z, y, x, dz, dy, dx):
                    return 0
    return 2 if sure else 1


@kernel
def _peaks(squared: Any, unknown: Any, edge: Any, radius: Any) -> Any:
    nz, ny, nx = squared.shape
    found = [(0, 0, 0)]
    unsure = [(0, 0, 0)]
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                if squared[z, y, x] == 0 or unknown[z, y, x]:
                    continue
                if _rank(squared, unknown, edge, z, y, x, 1) == 0:
                    continue
                rank = _rank(squared, unknown, edge, z, y, x, radius)
                if rank == 2:
                    found.append((z, y, x))
                elif rank == 1:
                    unsure.append((z, y, x))
    return _points(found), _points(unsure)


@kernel
def _is_greatest(squared: Any, unknown: Any, edge: Any, z: Any, y: Any, x: Any, footprint: Any, spacing: Any) -> Any:
    """2: no pixel within the disk is greater, and all within the spacing are known. 1: none known is. 0: one is."""
    nz, ny, nx = squared.shape
    here = squared[z, y, x]
    reach = max(footprint, spacing - 1)
    sure = True
    for dz in range(-reach, reach + 1):
        a = z + dz
        if a < 0 or a >= nz:
            sure = sure and edge[0, 0 if a < 0 else 1] == 0
            continue
        for dy in range(-reach, reach + 1):
            b = y + dy
            if b < 0 or b >= ny:
                sure = sure and edge[1, 0 if b < 0 else 1] == 0
                continue
            for dx in range(-reach, reach + 1):
                c = x + dx
                if c < 0 or c >= nx:
                    sure = sure and edge[2, 0 if c < 0 else 1] == 0
                    continue
                there = squared[a, b, c]
                if unknown[a, b, c]:
                    sure = sure and there < here
                elif there > here and dz * dz + dy * dy + dx * dx <= footprint * footprint:
                    return 0
    return 2 if sure else 1


@kernel
def _spaced(squared: Any, unknown: Any, edge: Any, footprint: Any, spacing: Any) -> Any:
    nz, ny, nx = squared.shape
    listed = [(0, 0, 0)]
    certain = [0]
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                if squared[z, y, x] == 0 or unknown[z, y, x]:
                    continue
                if _is_greatest(squared, unknown, edge, z, y, x, 1, 1) == 0:
                    continue
                rank = _is_greatest(squared, unknown, edge, z, y, x, footprint, spacing)
                if rank > 0:
                    listed.append((z, y, x))
                    certain.append(rank)
    points = _points(listed)
    height = np.empty(len(points), np.int64)
    at = np.zeros(squared.shape, np.int32)
    for i in range(len(points)):
        height[i] = squared[points[i, 0], points[i, 1], points[i, 2]]
    state = np.zeros(len(points) + 1, np.int8)
    for i in np.argsort(-height, kind="mergesort"):
        z, y, x = points[i]
        kept = certain[i + 1]
        for a in range(max(z - spacing + 1, 0), min(z + spacing, nz)):
            for b in range(max(y - spacing + 1, 0), min(y + spacing, ny)):
                for c in range(max(x - spacing + 1, 0), min(x + spacing, nx)):
                    other = state[at[a, b, c]]
                    if other == 2:
                        kept = 0
                    elif other == 1 and kept == 2:
                        kept = 1
        state[i + 1] = kept
        at[z, y, x] = i + 1
    return points[state[1:] == 2], points[state[1:] == 1]


@kernel
def _points(listed: Any) -> Any:
    out = np.empty((len(listed) - 1, 3), np.int64)
    for i in range(1, len(listed)):
        out[i - 1, 0], out[i - 1, 1], out[i - 1, 2] = listed[i]
    return out


@kernel
def _step_cost(squared: Any) -> Any:
    return max(np.int64(1), (np.int64(1) << 30) // (squared * squared)) if squared < 1 << 15 else np.int64(1)


def index_dtype(size: int) -> type[np.signedinteger]:
    """Return the smallest type of the flat indices of an array."""
    return np.int32 if size < 1 << 31 else np.int64


@kernel
def _flood(squared: Any, seeds: Any, unknown: Any, unsure: Any, labels: Any, room: Any) -> Any:
    """Flood one connected component of the foreground after the other; ``room`` is where their pixels are listed.

    ``labels`` holds the sources first: the seeds, and -1 for the unseen. A component that one source alone can reach
    is settled at once.
    """
    nz, ny, nx = squared.shape
    size = nz * ny * nx
    flat, lab, unk = squared.reshape(size), labels.reshape(size), unknown.reshape(size)
    for i in range(len(seeds)):
        lab[(seeds[i, 0] * ny + seeds[i, 1]) * nx + seeds[i, 2]] = i + 1
    for i in range(len(unsure)):
        lab[(unsure[i, 0] * ny + unsure[i, 1]) * nx + unsure[i, 2]] = -1
    for p in range(size):
        if unk[p]:
            lab[p] = -1
    visited = np.zeros(size, np.bool_)
    for first in range(size):
        if flat[first] == 0 or visited[first]:
            continue
        room, n = _component(flat, squared.shape, visited, first, room)
        found, unseen, label = 0, 0, -1
        for i in range(n):
            if lab[room[i]] > 0:
                found += 1
                label = lab[room[i]]
            elif lab[room[i]] < 0:
                unseen += 1
        if found == 0 or (found == 1 and unseen == 0):
            for i in range(n):
                lab[room[i]] = label
        else:
            _dispute(flat, unk, squared.shape, lab, room[:n])


@kernel
def _component(flat: Any, shape: Any, visited: Any, first: Any, room: Any) -> Any:
    """List the pixels connected with the first, in ``room`` or a larger one; return that and their number."""
    nz, ny, nx = shape
    visited[first] = True
    room[0] = first
    head, tail = 0, 1
    while head < tail:
        p = np.int64(room[head])
        head += 1
        if tail + 26 > len(room):
            larger = np.empty(2 * len(room) + 26, room.dtype)
            larger[:tail] = room[:tail]
            room = larger
        z, y, x = p // (ny * nx), (p // nx) % ny, p % nx
        for dz in range(-1 if z > 0 else 0, 2 if z < nz - 1 else 1):
            for dy in range(-1 if y > 0 else 0, 2 if y < ny - 1 else 1):
                for dx in range(-1 if x > 0 else 0, 2 if x < nx - 1 else 1):
                    q = p + (dz * ny + dy) * nx + dx
                    if flat[q] != 0 and not visited[q]:
                        visited[q] = True
                        room[tail] = q
                        tail += 1
    return room, tail


@kernel
def _dispute(flat: Any, unk: Any, shape: Any, lab: Any, pixels: Any) -> Any:
    """Dijkstra over a component; a heap of (cost, source, pixel), source -1 being the unseen.

    As long as it takes, ``lab`` holds the places of the pixels in their list, so that all else is as long as that.
    """
    nz, ny, nx = shape
    own = np.empty(len(pixels), np.int32)
    for i in range(len(pixels)):
        own[i] = lab[pixels[i]]
        lab[pixels[i]] = i
    best = np.full(len(pixels), np.iinfo(np.int64).max, np.int64)
    done = np.zeros(len(pixels), np.bool_)
    capacity = 64
    cost, source, place = np.empty(capacity, np.int64), np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    n = 0
    for i in range(len(pixels)):
        if own[i] == 0:
            continue
        best[i] = 0
        if unk[pixels[i]] and not _at_rim(flat, unk, shape, np.int64(pixels[i])):  # what is inside has nowhere to go
            done[i] = True
            continue
        if n == capacity:
            capacity, cost, source, place = _wider(capacity, cost, source, place)
        n = _push(cost, source, place, n, np.int64(0), own[i], i)
    while n > 0:
        c, s, i = cost[0], source[0], place[0]
        n = _pop(cost, source, place, n)
        if done[i] or best[i] != c or own[i] != s:
            continue
        done[i] = True
        p = np.int64(pixels[i])
        z, y, x = p // (ny * nx), (p // nx) % ny, p % nx
        for dz in range(-1 if z > 0 else 0, 2 if z < nz - 1 else 1):
            for dy in range(-1 if y > 0 else 0, 2 if y < ny - 1 else 1):
                for dx in range(-1 if x > 0 else 0, 2 if x < nx - 1 else 1):
                    q = p + (dz * ny + dy) * nx + dx
                    if flat[q] == 0:
                        continue
                    k = lab[q]
                    if done[k] or best[k] == 0:
                        continue
                    length = 3 + 2 * (abs(dz) + abs(dy) + abs(dx))
                    there = c + length * _step_cost(flat[q])
                    if there < best[k] or (there == best[k] and s < own[k]):
                        best[k] = there
                        own[k] = s
                        if n == capacity:
                            capacity, cost, source, place = _wider(capacity, cost, source, place)
                        n = _push(cost, source, place, n, there, s, k)
    for i in range(len(pixels)):
        lab[pixels[i]] = own[i]


@kernel
def _at_rim(flat: Any, unk: Any, shape: Any, p: Any) -> Any:
    """Whether an unknown pixel has a known one of the foreground beside it."""
    nz, ny, nx = shape
    z, y, x = p // (ny * nx), (p // nx) % ny, p % nx
    for dz in range(-1 if z > 0 else 0, 2 if z < nz - 1 else 1):
        for dy in range(-1 if y > 0 else 0, 2 if y < ny - 1 else 1):
            for dx in range(-1 if x > 0 else 0, 2 if x < nx - 1 else 1):
                q = p + (dz * ny + dy) * nx + dx
                if flat[q] > 0 and not unk[q]:
                    return True
    return False


@kernel
def _wider(capacity: Any, cost: Any, seed: Any, place: Any) -> Any:
    a = np.empty(2 * capacity, np.int64)
    b = np.empty(2 * capacity, np.int32)
    c = np.empty(2 * capacity, np.int32)
    a[:capacity] = cost
    b[:capacity] = seed
    c[:capacity] = place
    return 2 * capacity, a, b, c


@kernel
def _push(cost: Any, seed: Any, place: Any, n: Any, c: Any, s: Any, p: Any) -> Any:
    i = n
    while i > 0:
        up = (i - 1) >> 1
        if cost[up] < c or (cost[up] == c and seed[up] <= s):
            break
        cost[i], seed[i], place[i] = cost[up], seed[up], place[up]
        i = up
    cost[i], seed[i], place[i] = c, s, p
    return n + 1


@kernel
def _pop(cost: Any, seed: Any, place: Any, n: Any) -> Any:
    n -= 1
    c, s, p = cost[n], seed[n], place[n]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        right = child + 1
        if right < n and (cost[right] < cost[child] or (cost[right] == cost[child] and seed[right] < seed[child])):
            child = right
        if c < cost[child] or (c == cost[child] and s <= seed[child]):
            break
        cost[i], seed[i], place[i] = cost[child], seed[child], place[child]
        i = child
    cost[i], seed[i], place[i] = c, s, p
    return n
