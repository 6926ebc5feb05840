"""Where the pixels around a star-convex polygon lie: in which sector, between a corner and the next, as seen from it.

For kernels. Corners ``(m, 2)`` of whole numbers ``(y, x)``, each of which lies farther around the pixel ``(oy, ox)``
than the one before. Sector ``k`` begins at corner ``k`` and ends before the next.
"""

from __future__ import annotations

from typing import Any

from spatialdata_segment.core.jit import kernel


@kernel
def sector_of(star: Any, oy: int, ox: int, y: int, x: int) -> int:
    """Return the sector of a pixel; of ``(oy, ox)`` itself, any."""
    m, dy, dx = len(star), y - oy, x - ox
    before = _cross(star[0, 0] - oy, star[0, 1] - ox, dy, dx)
    for k in range(m - 1):
        after = _cross(star[k + 1, 0] - oy, star[k + 1, 1] - ox, dy, dx)
        if before >= 0 and after < 0:
            return k
        before = after
    return m - 1


@kernel
def sectors(star: Any, y0: int, x0: int, y1: int, x1: int, oy: int, ox: int, sector: int) -> Any:
    """Return which edges a line may touch, and the sector in which it ends.

    Parameters
    ----------
    star
        The polygon.
    y0, x0, y1, x1
        The ends of the line, as seen from ``(oy, ox)``.
    oy, ox
        The pixel that the polygon goes around.
    sector
        In which the line begins.

    Returns
    -------
    The first edge and the one after the last, and the sector; edges below 0 and from ``m`` on are those of one turn
    before and after.
    """
    m, turn, end = len(star), _cross(y0, x0, y1, x1), sector
    if turn == 0 and y0 * y1 + x0 * x1 <= 0:  # through the pixel, or from or to it: any edge
        return 0, m, sector_of(star, oy, ox, y1 + oy, x1 + ox)
    first, last = sector, sector
    if turn > 0:
        after = end + 1 if end + 1 < m else 0
        while _cross(star[after, 0] - oy, star[after, 1] - ox, y1, x1) >= 0:
            last, end = last + 1, after
            after = end + 1 if end + 1 < m else 0
    elif turn < 0:
        while _cross(star[end, 0] - oy, star[end, 1] - ox, y1, x1) < 0:
            first, end = first - 1, end - 1 if end > 0 else m - 1
    if last - first + 3 >= m:
        return 0, m, end
    return first - 1, last + 2, end


@kernel
def _cross(y0: int, x0: int, y1: int, x1: int) -> int:
    """Return a number above 0 where the second of two directions lies within half a turn after the first."""
    return x0 * y1 - y0 * x1
