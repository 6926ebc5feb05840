"""Labels grown by a distance, each pixel to its nearest object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray


_FINE = 1 << 20
"""Units to which a squared pixel of the widest axis is divided."""


def expand(labels: NDArray[np.int32], distance: tuple[float, ...]) -> NDArray[np.int32]:
    """Grow every object by ``distance``.

    A background pixel goes to the object with the nearest pixel (centre to centre); where two are as near,
    to the lower label. Nothing grows across another object: what lies behind it is nearer to that one. The
    rule of ``skimage.segmentation.expand_labels``, with its ties decided.

    Parameters
    ----------
    labels
        ``(z, y, x)``, 0 is background, negative is left as it is and grows as any other.
    distance
        Radius in pixels along z, y and x (they differ where the pixels are not square).
    """
    radius = np.array([np.floor(max(d, 0.0) + 1e-9) for d in distance], np.int64)
    # squared distance on integers, as if all axes had the largest radius: equal distances stay equal
    largest = max(*distance, 1.0)
    exact = np.array([(largest / d) ** 2 * _FINE if r else 0.0 for d, r in zip(distance, radius, strict=True)])
    unit = np.rint(exact).astype(np.int64)
    limit = np.int64(largest**2 * _FINE + (np.abs(unit - exact) * radius**2).sum() + 1)
    reach = np.full(labels.shape, np.iinfo(np.int64).max >> 2, np.int64)
    out = np.ascontiguousarray(labels).copy()
    reach[out != 0] = 0
    for axis in range(3):
        if radius[axis] > 0 and labels.shape[axis] > 1:
            lines, far = (np.ascontiguousarray(np.moveaxis(a, axis, 2)) for a in (out, reach))
            grown = _along(lines, far, radius[axis], unit[axis], limit)
            out = np.ascontiguousarray(np.moveaxis(grown[0], 2, axis))
            reach = np.ascontiguousarray(np.moveaxis(grown[1], 2, axis))
    out[reach > limit] = 0
    return out


@kernel
def _along(labels: Any, reach: Any, radius: Any, unit: Any, limit: Any) -> Any:
    """Best (distance, label) of every pixel over its line along the last axis."""
    nz, ny, nx = labels.shape
    out = labels.copy()
    best = reach.copy()
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                s = labels[z, y, x]
                if s == 0:
                    continue
                start = reach[z, y, x]
                for d in range(1, radius + 1):
                    there = start + d * d * unit
                    if there > limit:
                        break
                    for c in (x - d, x + d):
                        if 0 <= c < nx:
                            now = best[z, y, c]
                            if there < now or (there == now and s < out[z, y, c]):
                                best[z, y, c] = there
                                out[z, y, c] = s
    return out, best
