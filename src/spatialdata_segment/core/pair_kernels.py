"""The compiled loop that counts pairs of labels: runs of equal pairs along x, tile by tile.

A tile's pairs are counted in a small hash table that stays in the cache, the background among them, so that the
loop over runs has next to no branch that is hard to foresee; then they are added to the table of all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.measure_kernels import find, longer, table_of

_ROWS, _COLUMNS = 128, 512
_SLOTS = 2048
"""Slots of the table of a tile: a power of two, more than twice the runs of a row."""


@kernel
def pairs(a: Any, b: Any, background: bool) -> Any:
    """Return the pairs of ids ``(n, 2)`` of two volumes ``(z, y, x)``, and the pixels of each."""
    nz, ny, nx = a.shape
    keys = np.zeros((64, 2), np.int64)
    count = np.zeros(64, np.int64)
    table = table_of(keys, 0)
    near = np.zeros((_SLOTS, 3), np.int64)
    ends = np.empty(_COLUMNS + 1, np.int32)
    n = 0
    for z in range(nz):
        for y0 in range(0, ny, _ROWS):
            for x0 in range(0, nx, _COLUMNS):
                used = 0
                for y in range(y0, min(y0 + _ROWS, ny)):
                    p, q = a[z, y, x0 : x0 + _COLUMNS], b[z, y, x0 : x0 + _COLUMNS]
                    m = _runs(p, q, ends)
                    if 2 * (used + m) > _SLOTS:
                        keys, count, table, n = _add(near, background, keys, count, table, n)
                        used = 0
                    used += _count(p, q, ends, m, near)
                keys, count, table, n = _add(near, background, keys, count, table, n)
    return keys[:n].copy(), count[:n].copy()


@kernel
def _runs(p: Any, q: Any, ends: Any) -> Any:
    """Write where the runs of equal pairs in a row end; return how many there are."""
    m = 0
    i, j = p[0], q[0]
    for x in range(1, len(p)):
        next_i, next_j = p[x], q[x]
        ends[m] = x
        m += (i != next_i) | (j != next_j)
        i, j = next_i, next_j
    ends[m] = len(p)
    return m + 1


@kernel
def _count(p: Any, q: Any, ends: Any, m: int, near: Any) -> Any:
    """Add the runs of a row to the table of a tile; return how many pairs are new there."""
    mask = np.uint64(len(near) - 1)
    x, new = 0, 0
    for k in range(m):
        i, j = np.int64(p[x]), np.int64(q[x])
        h = np.uint64(i) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(j) * np.uint64(0xC2B2AE3D27D4EB4F)
        h = (h >> np.uint64(48)) & mask
        while near[np.int64(h), 2] != 0 and (near[np.int64(h), 0] != i or near[np.int64(h), 1] != j):
            h = (h + np.uint64(1)) & mask
        slot = near[np.int64(h)]
        if slot[2] == 0:
            slot[0], slot[1] = i, j
            new += 1
        slot[2] += ends[k] - x
        x = ends[k]
    return new


@kernel
def _add(near: Any, background: bool, keys: Any, count: Any, table: Any, n: int) -> Any:
    """Empty the table of a tile into that of all."""
    for h in range(len(near)):
        i, j, size = near[h]
        near[h, 2] = 0
        if size == 0 or (i == 0 and j == 0) or (not background and (i == 0 or j == 0)):
            continue
        s = find(table, keys, n, i, j)
        count[s] += size
        if s == n:
            n += 1
            if n == len(keys):
                keys, count = longer(keys), longer(count)
                table = table_of(keys, n)
    return keys, count, table, n
