"""Compiled loops behind ``measure.py``: runs of equal pixels along x, and a hash table of the ids met.

Every kernel takes C-contiguous read-only volumes ``(z, y, x)``, releases the GIL, runs on one thread, and
returns ids in the order in which it met them. Nothing is sized by an id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

FRACTION_BITS = 40
"""Float pixels are summed as whole multiples of ``2 ** -FRACTION_BITS`` (9.1e-13)."""

MAX_INTENSITY = 2.0**40
"""Largest absolute value of a float or 64-bit pixel: sums then hold for objects of 2**22 pixels and more."""


def _njit(function: F) -> F:
    return cast("F", numba.njit(nogil=True, cache=True)(function))


@_njit
def find(table: Any, keys: Any, n: int, a: Any, b: Any) -> int:
    """Return the slot of the key ``(a, b)``; ``n``, the next free one, if it is new."""
    mask = np.uint64(len(table) - 1)
    h = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(b) * np.uint64(0xC2B2AE3D27D4EB4F)
    h ^= h >> np.uint64(29)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(32)
    h &= mask
    while True:
        slot = table[np.int64(h)]
        if slot < 0:
            table[np.int64(h)] = n
            keys[n, 0] = a
            keys[n, 1] = b
            return n
        if keys[slot, 0] == a and keys[slot, 1] == b:
            return int(slot)
        h = (h + np.uint64(1)) & mask


@_njit
def longer(array: Any) -> Any:
    """Return the rows of an array, and as many of zeros."""
    out = np.zeros((2 * len(array), *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out


@_njit
def table_of(keys: Any, n: int) -> Any:
    """Return a hash table of the first ``n`` keys, four times as long as ``keys``."""
    table = np.full(4 * len(keys), -1, np.int64)
    for i in range(n):
        find(table, keys, i, keys[i, 0], keys[i, 1])
    return table


@_njit
def moments(labels: Any, start: Any) -> Any:
    """Return the ids, and per id area, 3 sums of indices, 3 starts and 3 stops, as ``(n, 10)``."""
    nz, ny, nx = labels.shape
    keys = np.zeros((64, 2), np.int64)
    acc = np.zeros((64, 10), np.int64)
    table = table_of(keys, 0)
    n = 0
    for z in range(nz):
        for y in range(ny):
            row = labels[z, y]
            gz, gy = z + start[0], y + start[1]
            x = 0
            while x < nx:
                label = row[x]
                x0 = x
                x += 1
                while x < nx and row[x] == label:
                    x += 1
                if label == 0:
                    continue
                s = find(table, keys, n, np.int64(label), 0)
                a, b, length = x0 + start[2], x + start[2], x - x0
                m = acc[s]
                if s == n:
                    m[4], m[5], m[6], m[7], m[8], m[9] = gz, gy, a, gz + 1, gy + 1, b
                m[0] += length
                m[1] += length * gz
                m[2] += length * gy
                m[3] += length * (a + b - 1) // 2
                m[5], m[6] = min(m[5], gy), min(m[6], a)
                m[7], m[8], m[9] = max(m[7], gz + 1), max(m[8], gy + 1), max(m[9], b)
                if s == n:
                    n += 1
                    if n == len(keys):
                        keys, acc = longer(keys), longer(acc)
                        table = table_of(keys, n)
    return keys[:n, 0].copy(), acc[:n].copy()


@_njit
def nearest(labels: Any, start: Any, ids: Any, area: Any, sums: Any) -> Any:
    """Return, of the ids in ``ids``, the smallest squared distance (times area squared) and its pixel."""
    nz, ny, nx = labels.shape
    keys = np.zeros((64, 2), np.int64)
    where = np.zeros(64, np.int64)
    best = np.zeros(64, np.float64)
    pixel = np.zeros((64, 3), np.int64)
    table = table_of(keys, 0)
    n = 0
    for z in range(nz):
        for y in range(ny):
            row = labels[z, y]
            gz, gy = z + start[0], y + start[1]
            x = 0
            while x < nx:
                label = row[x]
                x0 = x
                x += 1
                while x < nx and row[x] == label:
                    x += 1
                if label == 0:
                    continue
                s = find(table, keys, n, np.int64(label), 0)
                new = s == n
                if new:
                    i = np.searchsorted(ids, np.int64(label))
                    where[s] = i if i < len(ids) and ids[i] == np.int64(label) else -1
                    n += 1
                    if n == len(keys):
                        keys, where = longer(keys), longer(where)
                        best, pixel = longer(best), longer(pixel)
                        table = table_of(keys, n)
                i = where[s]
                if i < 0:
                    continue
                w = area[i]
                # the run's pixel nearest the centroid along x, the lower one of two
                gx = -((w - 2 * sums[i, 2]) // (2 * w))
                gx = min(max(gx, x0 + start[2]), x - 1 + start[2])
                dz, dy = float(w * gz - sums[i, 0]), float(w * gy - sums[i, 1])
                dx = float(w * gx - sums[i, 2])
                d = dz * dz + (dy * dy + dx * dx)
                if new or d < best[s]:
                    best[s] = d
                    pixel[s, 0], pixel[s, 1], pixel[s, 2] = gz, gy, gx
    keep = np.flatnonzero(where[:n] >= 0)
    return keys[:n, 0][keep], best[:n][keep], pixel[:n][keep]


@_njit
def add_integers(labels: Any, image: Any) -> Any:
    """Return ids, pixels, whole sums, fractions (0), invalid (none), and whether a pixel is too large."""
    nc = len(image)
    nz, ny, nx = labels.shape
    keys = np.zeros((64, 2), np.int64)
    count = np.zeros(64, np.int64)
    whole = np.zeros((64, nc), np.int64)
    table = table_of(keys, 0)
    n = 0
    wide = image.itemsize == 8
    beyond = False
    for z in range(nz):
        for y in range(ny):
            row = labels[z, y]
            x = 0
            while x < nx:
                label = row[x]
                x0 = x
                x += 1
                while x < nx and row[x] == label:
                    x += 1
                if label == 0:
                    continue
                s = find(table, keys, n, np.int64(label), 0)
                count[s] += x - x0
                for c in range(nc):
                    total = np.int64(0)
                    for i in range(x0, x):
                        total += np.int64(image[c, z, y, i])
                    if wide:
                        for i in range(x0, x):
                            beyond |= abs(float(image[c, z, y, i])) > MAX_INTENSITY
                    whole[s, c] += total
                if s == n:
                    n += 1
                    if n == len(keys):
                        keys, count, whole = longer(keys), longer(count), longer(whole)
                        table = table_of(keys, n)
    fraction, invalid = np.zeros((n, nc), np.int64), np.zeros((n, nc), np.bool_)
    return keys[:n, 0].copy(), count[:n].copy(), whole[:n].copy(), fraction, invalid, beyond


@_njit
def add_floats(labels: Any, image: Any) -> Any:
    """Return ids, pixels, whole sums, fractions, invalid, and whether a pixel is too large."""
    nc = len(image)
    nz, ny, nx = labels.shape
    keys = np.zeros((64, 2), np.int64)
    count = np.zeros(64, np.int64)
    whole = np.zeros((64, nc), np.int64)
    fraction = np.zeros((64, nc), np.int64)
    invalid = np.zeros((64, nc), np.bool_)
    table = table_of(keys, 0)
    n = 0
    beyond = False
    unit, low = 2.0**FRACTION_BITS, (1 << FRACTION_BITS) - 1
    for z in range(nz):
        for y in range(ny):
            row = labels[z, y]
            x = 0
            while x < nx:
                label = row[x]
                x0 = x
                x += 1
                while x < nx and row[x] == label:
                    x += 1
                if label == 0:
                    continue
                s = find(table, keys, n, np.int64(label), 0)
                count[s] += x - x0
                for c in range(nc):
                    t, f = np.int64(0), np.int64(0)
                    for i in range(x0, x):
                        v = float(image[c, z, y, i])
                        if not np.isfinite(v):
                            invalid[s, c] = True
                        elif abs(v) > MAX_INTENSITY:
                            beyond = True
                        else:
                            down = np.floor(v)
                            t += np.int64(down)
                            f += np.int64(np.rint((v - down) * unit))
                    f += fraction[s, c]
                    whole[s, c] += t + (f >> FRACTION_BITS)
                    fraction[s, c] = f & low
                if s == n:
                    n += 1
                    if n == len(keys):
                        keys, count, whole = longer(keys), longer(count), longer(whole)
                        fraction, invalid = longer(fraction), longer(invalid)
                        table = table_of(keys, n)
    sums = whole[:n].copy(), fraction[:n].copy(), invalid[:n].copy()
    return keys[:n, 0].copy(), count[:n].copy(), *sums, beyond


@_njit
def replace(labels: Any, ids: Any, new: Any, out: Any) -> None:
    """Write ``new`` where ``ids`` stand into ``out``, which is 0 elsewhere."""
    nz, ny, nx = labels.shape
    for z in range(nz):
        for y in range(ny):
            row, to = labels[z, y], out[z, y]
            x = 0
            while x < nx:
                label = row[x]
                x0 = x
                x += 1
                while x < nx and row[x] == label:
                    x += 1
                if label == 0:
                    continue
                i = np.searchsorted(ids, np.int64(label))
                if i < len(ids) and ids[i] == np.int64(label):
                    to[x0:x] = new[i]


@_njit
def look_up(labels: Any, table: Any, out: Any) -> None:
    """Write ``table[label]`` into ``out``, and 0 where a label is beyond the table."""
    nz, ny, nx = labels.shape
    for z in range(nz):
        for y in range(ny):
            row, to = labels[z, y], out[z, y]
            for x in range(nx):
                label = np.uint64(row[x])
                to[x] = table[label] if label < np.uint64(len(table)) else 0
