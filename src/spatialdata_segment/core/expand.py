"""Labels grown by a distance, each pixel to its nearest object."""

from __future__ import annotations

from fractions import Fraction
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray


_FINE = 1 << 20
"""Units to which a squared pixel of the widest axis is divided, where no integers hold the squares exactly."""
_LARGEST = 1 << 50


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
    unit, limit = _units(distance, radius)
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


def _units(distance: tuple[float, ...], radius: NDArray[np.int64]) -> tuple[NDArray[np.int64], np.int64]:
    """Return the square of a pixel along each axis, and of the distance, as integers: what is as near stays so."""
    grows = [d for d, r in zip(distance, radius, strict=True) if r]
    exact = [Fraction(d).limit_denominator(1000) for d in grows]
    common = lcm(*(q.numerator**2 for q in exact))
    if common <= _LARGEST and np.allclose([float(q) for q in exact], grows, rtol=1e-12, atol=0):
        squares = iter([common * q.denominator**2 // q.numerator**2 for q in exact])
        return np.array([next(squares) if r else 0 for r in radius], np.int64), np.int64(common)
    # as if all axes had the largest radius
    largest = max(*distance, 1.0)
    scaled = np.array([(largest / d) ** 2 * _FINE if r else 0.0 for d, r in zip(distance, radius, strict=True)])
    unit = np.rint(scaled).astype(np.int64)
    return unit, np.int64(largest**2 * _FINE + (np.abs(unit - scaled) * radius**2).sum() + 1)


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
