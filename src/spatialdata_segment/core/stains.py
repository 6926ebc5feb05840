"""Stains of a transmitted-light RGB image, pixel by pixel."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.core.jit import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

STAINS = {"haematoxylin": 0, "hematoxylin": 0, "eosin": 1}
"""Names, and their rows in `_VECTORS`."""

_VECTORS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Absorption of red, green and blue by haematoxylin, eosin and DAB."""

_LEAST = 1e-6


def stain_amount(rgb: NDArray[Any], stain: str) -> NDArray[np.float32]:
    """Return how much of a stain each pixel holds, by colour deconvolution.

    Parameters
    ----------
    rgb
        ``(3, ...)``: uint8, uint16, or floats 0 to 1; white is 1.
    stain
        One of `STAINS`.

    Returns
    -------
    ``(1, ...)`` float32, 0 or more, the larger the more stain; `skimage.color.rgb2hed` to float32.

    Notes
    -----
    A. C. Ruifrok and D. A. Johnston, "Quantification of histochemical staining by color deconvolution" (2001).
    """
    white = np.iinfo(rgb.dtype).max if rgb.dtype.kind == "u" else 1
    weights = np.linalg.inv(_VECTORS)[:, STAINS[stain]] / log(_LEAST)
    out = np.empty((1, *rgb.shape[1:]), np.float32)
    red, green, blue = (np.ascontiguousarray(channel).reshape(-1) for channel in rgb)
    _unmix(red, green, blue, 1 / white, weights, out.reshape(-1))
    return out


@kernel
def _unmix(red: Any, green: Any, blue: Any, scale: Any, weights: Any, out: Any) -> Any:
    for i in range(out.size):
        amount = weights[0] * log(max(red[i] * scale, _LEAST))
        amount += weights[1] * log(max(green[i] * scale, _LEAST))
        amount += weights[2] * log(max(blue[i] * scale, _LEAST))
        out[i] = max(amount, 0.0)
