"""How much of an object's outline borders on background, and how much on its neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray


def background_contact(labels: NDArray[np.integer], n: int) -> NDArray[np.float64]:
    """Return the share of each object's outline that borders on background.

    The outline is counted in faces of pixels (4 neighbours, 6 in 3D) between the object and anything else.
    Faces at the array's edge do not count, nor do those to pixels that are -1, of which nobody knows what
    they are; a complete object has none of these.

    Parameters
    ----------
    labels
        ``([z], y, x)``: 0 background, ``1..n`` the objects, -1 unknown.
    n
        Number of objects.

    Returns
    -------
    ``(n,)``, 0 to 1; 1 for an object without a face that counts.
    """
    assert int(labels.max(initial=0)) <= n
    volume = np.ascontiguousarray(labels if labels.ndim == 3 else labels[None], np.int32)
    free, total = _faces(volume, n)
    share = np.ones(n)
    np.divide(free, total, out=share, where=total > 0)
    return share


@kernel
def _faces(labels: Any, n: Any) -> Any:
    """Faces of each object to background, and to anything known."""
    nz, ny, nx = labels.shape
    free = np.zeros(n, np.int64)
    total = np.zeros(n, np.int64)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                a = labels[z, y, x]
                if a < 0:
                    continue
                for axis in range(3):
                    k, j, i = z + (axis == 0), y + (axis == 1), x + (axis == 2)
                    if k == nz or j == ny or i == nx:
                        continue
                    b = labels[k, j, i]
                    if b == a or b < 0:
                        continue
                    if a > 0:
                        total[a - 1] += 1
                        free[a - 1] += b == 0
                    if b > 0:
                        total[b - 1] += 1
                        free[b - 1] += a == 0
    return free, total
