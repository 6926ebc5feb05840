"""Nuclei by a threshold of the whole image, parted at their necks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from spatialdata_segment.core.distance import squared_distance, unknown
from spatialdata_segment.core.flood import UNRESOLVED, flood, peaks
from spatialdata_segment.core.statistics import Statistic
from spatialdata_segment.methods.base import Decoded, ImageInfo, Method, View

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OTSU = Statistic("otsu")


class ThresholdNuclei(Method):
    """Bright blobs above a threshold, one object to each distance peak.

    Pixels above the threshold are foreground. Their distance to the background is exact, on integers; a
    pixel that sees no greater distance within ``min_distance`` is a peak, and the foreground is flooded from
    the peaks along the cheapest paths, which part at the necks between touching nuclei. The labels are the
    same for every shard plan.

    Parameters
    ----------
    threshold
        Pixel value above which a (smoothed) pixel is foreground; None: Otsu's threshold of the whole image.
    sigma
        Standard deviation, in px, of the Gaussian that smooths the image first; 0: none.
    min_distance
        Least distance, in px, between the peaks of two nuclei that see each other.

    Notes
    -----
    The rules of the peaks and of the flood are in `spatialdata_segment.core.flood`.
    """

    name: ClassVar[str] = "threshold-nuclei"
    ndims: ClassVar[frozenset[int]] = frozenset({2, 3})
    map_dtype: ClassVar[str | None] = "uint8"
    bytes_per_pixel: ClassVar[float] = 60.0

    threshold: float | None = None
    sigma: float = Field(default=1.0, ge=0)
    min_distance: int = Field(default=8, ge=1)

    def statistics(self, image: ImageInfo) -> tuple[Statistic, ...]:
        """Otsu's threshold, unless one is given."""
        return (_OTSU,) if self.threshold is None else ()

    def context(self, image: ImageInfo) -> tuple[int, ...]:
        """Reach of the Gaussian, and one pixel that can be known at all."""
        return (self._reach + 1,) * image.ndim

    @property
    def _reach(self) -> int:
        return int(4 * self.sigma + 0.5)

    def predict(self, image: NDArray[Any], view: View) -> NDArray[np.uint8]:
        """Return the foreground, 0 or 1."""
        threshold = view.statistics[_OTSU] if self.threshold is None else self.threshold
        return (_smooth(image[0], self.sigma) > threshold)[None].astype(np.uint8)

    def decode(self, maps: NDArray[Any], view: View) -> Decoded:
        """Find the peaks, and flood the foreground from them."""
        window = view.window
        margin = (self._reach,) * window.box.ndim
        inner = window.shrink(margin).within(window.box)
        mask = maps[0].astype(bool)
        volume = np.ascontiguousarray(mask[inner] if mask.ndim == 3 else mask[inner][None])
        squared = squared_distance(volume)
        unseen = unknown(squared, window, margin)
        edge = np.zeros((3, 2), np.int64)
        edge[3 - mask.ndim :] = np.column_stack([window.open_low, window.open_high])
        found, unsure = peaks(squared, unseen, edge, self.min_distance)
        flooded, complete = flood(squared, found, unseen, unsure)
        labels = np.where(mask, np.int32(UNRESOLVED), np.int32(0))
        labels[inner] = flooded if mask.ndim == 3 else flooded[0]
        return Decoded(labels, found[:, 3 - mask.ndim :] + [s.start for s in inner], complete)


def _smooth(image: NDArray[Any], sigma: float) -> NDArray[Any]:
    if sigma == 0:
        return image
    from scipy.ndimage import gaussian_filter

    precision = np.float32 if image.dtype.itemsize <= 2 else np.float64
    smooth: NDArray[Any] = gaussian_filter(image, sigma, output=precision, mode="nearest", truncate=4.0)
    return smooth
