"""A Gaussian in a precision that does not depend on the window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter

if TYPE_CHECKING:
    from numpy.typing import NDArray

CUT = 4.0
"""Standard deviations, at which the Gaussian is cut."""


def smooth(image: NDArray[Any], sigma: float) -> NDArray[Any]:
    """Smooth, edges repeated; float32, or float64 for what float32 does not hold. With ``sigma`` 0 only convert."""
    precision = np.float32 if image.dtype.itemsize <= 2 or image.dtype == np.float32 else np.float64
    if sigma == 0:
        return image.astype(precision)
    out: NDArray[Any] = gaussian_filter(image, sigma, output=precision, mode="nearest", truncate=CUT)
    return out


def reach(sigma: float) -> int:
    """Return how many pixels around a pixel it depends on."""
    return int(CUT * sigma + 0.5)
