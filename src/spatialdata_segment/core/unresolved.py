"""What a window cannot know: the mark for it, and the objects that it concerns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNRESOLVED = -1
"""Label of a foreground pixel that may belong to something which the window does not show."""


def complete(labels: NDArray[np.int32], n: int) -> NDArray[np.bool_]:
    """Tell, ``(n,)`` bool, which of the objects 1..n of ``(z, y, x)`` labels touch no pixel that is `UNRESOLVED`."""
    out = np.ones(n + 1, np.bool_)
    _mark(labels, out)
    return out[1:]


@kernel
def _mark(labels: Any, out: Any) -> None:
    nz, ny, nx = labels.shape
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                if labels[z, y, x] != UNRESOLVED:
                    continue
                for a in range(max(z - 1, 0), min(z + 2, nz)):
                    for b in range(max(y - 1, 0), min(y + 2, ny)):
                        for c in range(max(x - 1, 0), min(x + 2, nx)):
                            if labels[a, b, c] > 0:
                                out[labels[a, b, c]] = False
