"""Nuclei by a threshold that follows the image, parted at their necks."""

from __future__ import annotations

from math import pi
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from spatialdata_segment.core.contact import background_contact
from spatialdata_segment.core.distance import squared_distance, unknown
from spatialdata_segment.core.flood import flood, peaks, spaced_peaks
from spatialdata_segment.core.local import (
    contrast_mask,
    contrast_reach,
    median_mask,
    median_reach,
    otsu_mask,
    otsu_reach,
)
from spatialdata_segment.core.matching import Reason
from spatialdata_segment.core.median import disk_median
from spatialdata_segment.core.shards import as_volume
from spatialdata_segment.core.smooth import reach, smooth
from spatialdata_segment.core.statistics import Statistic, quantile_or_end
from spatialdata_segment.core.unresolved import UNRESOLVED
from spatialdata_segment.methods.base import Decoded, ImageInfo, Method, Share, View

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from spatialdata_segment.core.plan import Window

_CLIP = 0.999
"""Brighter pixels than this quantile do not count in what is measured of an image: debris does not decide."""
_DARK, _BRIGHT = Statistic("dark", value=_CLIP), Statistic("bright", value=_CLIP)
_RADIUS = Statistic("radius", value=_CLIP)
_LEAST_RADIUS, _USUAL_RADIUS = 4.0, 10.0
"""px; assumed for the least and for the usual halo until the image was measured."""


class ThresholdNuclei(Method):
    """Bright blobs, one object to each distance peak.

    1. The stain may be freed from specks by a median, brought to 0..1 between two quantiles of the whole image,
       and smoothed.
    2. A pixel is foreground where it is brighter than a threshold. By default that follows the image: it lies
       between the local background and the local peak, on the scale of the nuclei, which is measured.
    3. An opening may remove specks of the mask.
    4. The distance to the background is exact, on integers; a pixel that sees no greater distance near by is a
       peak, and the foreground is flooded from the peaks along the cheapest paths, which part at the necks
       between touching nuclei.
    5. What is too small, or borders too much on others, is rejected, and listed with the reason.

    The labels are the same for every shard plan.

    Parameters
    ----------
    threshold
        None: by local contrast (see ``contrast``). "otsu": Otsu's threshold of the whole image. "local-otsu": of
        the surroundings, see ``otsu_block``. A number: with ``median_block`` what a pixel must exceed the local
        median by; else the pixel value to exceed. In units of the image, 0..1 where a quantile is given.
    contrast
        How far, from the local background (0) to the local peak (1), a pixel must be; for ``threshold=None``.
    min_contrast
        What a pixel must exceed the local background by, as a share of the contrast of the whole image: of what
        lies above Otsu's threshold (mean) to what lies below (median).
    object_radius
        Of a usual nucleus, px; None: estimated from the whole image.
    lower_quantile_normalization, upper_quantile_normalization
        Quantiles of the whole image, 0 to 1, that become 0 and 1; one is enough (the other is the minimum or the
        maximum). What lies beyond is clipped.
    median_filter_size
        Radius, px, of the disk of the median that comes first.
    sigma
        Standard deviation, px, of the Gaussian that smooths the stain; 0: none.
    median_block
        Side of the square of the local median: an odd number of pixels of the thinned image (see
        ``median_step``).
    median_step
        Every how many pixels the local median looks, px.
    otsu_block
        px; the threshold of "local-otsu" is that of a square of three blocks. It is nowhere below half the way
        from the dark half of the image to Otsu's threshold of the whole.
    speckle_kernel
        Erosion of the mask by a disk of this radius and dilation by one of a pixel less: odd, px. None: neither.
    min_distance
        Least distance, px, between the peaks of two nuclei that see each other; None: 0.7 of the radius.
    peak_footprint
        Radius, px, of a disk. With it peaks are found as ``skimage.feature.peak_local_max`` does: no pixel of the
        disk is higher, seen from the peak or not, and peaks less than ``min_distance`` apart along every axis are
        one. A long nucleus then has several.
    dilation
        Radius, px, of the disk by which the mask is dilated before it is flooded.
    contact_filter
        Share of its outline that must border on background; a nucleus with less is rejected (``low_contact``).
    debris
        Objects smaller than this share of a disk (in 3D a ball) of the radius are rejected (``too_small``).

    Notes
    -----
    The rules of the peaks and of the flood are in `spatialdata_segment.core.flood`, those of the thresholds in
    `spatialdata_segment.core.local`. The local median and the names of the parameters are those of scPortrait;
    `scportrait` has its documented values.
    """

    name: ClassVar[str] = "threshold-nuclei"
    ndims: ClassVar[frozenset[int]] = frozenset({2, 3})
    map_dtype: ClassVar[str | None] = "uint8"
    decode_parameters: ClassVar[frozenset[str]] = frozenset(
        {"min_distance", "peak_footprint", "dilation", "contact_filter", "debris"}
    )
    bytes_per_pixel: ClassVar[float] = 60.0

    threshold: float | Literal["otsu", "local-otsu"] | None = None
    contrast: float = Field(default=0.35, gt=0, lt=1)
    min_contrast: float = Field(default=0.2, ge=0)
    object_radius: float | None = Field(default=None, ge=1, le=500)
    lower_quantile_normalization: Share | None = None
    upper_quantile_normalization: Share | None = None
    median_filter_size: int | None = Field(default=None, ge=1)
    sigma: float = Field(default=1.0, ge=0)
    median_block: int | None = Field(default=None, ge=3)
    median_step: int = Field(default=4, ge=1)
    otsu_block: int = Field(default=128, ge=16)
    speckle_kernel: int | None = Field(default=None, ge=1)
    min_distance: int | None = Field(default=None, ge=1)
    peak_footprint: int | None = Field(default=None, ge=1)
    dilation: int = Field(default=0, ge=0)
    contact_filter: Share | None = None
    debris: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("median_block", "speckle_kernel"):
            size = getattr(self, name)
            if size is not None and size % 2 == 0:
                raise ValueError(f"{name}={size} is even, expected an odd number: {size - 1} or {size + 1}")
        low, high = self._quantiles or (0.0, 1.0)
        if low >= high:
            raise ValueError(f"lower_quantile_normalization={low} is not below upper_quantile_normalization={high}")
        if self.median_block is not None and not isinstance(self.threshold, int | float):
            raise ValueError(
                f"median_block={self.median_block} needs a number as threshold, which a pixel must exceed the local "
                f"median by; threshold is {self.threshold!r}"
            )
        idle = {
            "median_step": self.median_block is None,
            "otsu_block": self.threshold != "local-otsu",
            "contrast": self.threshold is not None,
            "min_contrast": self.threshold is not None,
        }
        idle["object_radius"] = self.threshold is not None and self.min_distance is not None and self.debris == 0
        for name, has_no_effect in idle.items():
            if has_no_effect and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name}={getattr(self, name)} has no effect with threshold={self.threshold!r}: leave it out"
                )
        return self

    @classmethod
    def scportrait(cls, **changes: Any) -> Self:
        """Return the method with the values that scPortrait documents; ``changes`` replace some."""
        documented = {
            "threshold": 0.2,
            "lower_quantile_normalization": 0.01,
            "upper_quantile_normalization": 0.99,
            "sigma": 0.0,
            "median_block": 41,
            "median_step": 4,
            "speckle_kernel": 9,
            "min_distance": 8,
            "peak_footprint": 7,
            "dilation": 0,
            "contact_filter": 0.5,
            "debris": 0.0,
        }
        return cls(**{**documented, **changes})

    @property
    def _quantiles(self) -> tuple[float, float] | None:
        low, high = self.lower_quantile_normalization, self.upper_quantile_normalization
        return None if low is None and high is None else (low or 0.0, 1.0 if high is None else high)

    @property
    def _otsu(self) -> Statistic:
        """Otsu's threshold of what the quantiles leave."""
        return Statistic("otsu", value=self.upper_quantile_normalization or 0.0)

    @property
    def _asks_radius(self) -> bool:
        return self.object_radius is None and (self.threshold is None or self.min_distance is None or self.debris > 0)

    def statistics(self, image: ImageInfo) -> tuple[Statistic, ...]:
        """Thresholds, quantiles and the size of the nuclei, as far as they are not given."""
        wanted = [quantile_or_end(0, q) for q in self._quantiles or ()]
        if isinstance(self.threshold, str):
            wanted.append(self._otsu)
        if self.median_block is not None and self._quantiles is None:
            wanted += [quantile_or_end(0, 0), quantile_or_end(0, 1)]
        if self.threshold == "local-otsu":
            wanted.append(_DARK)
        if self.threshold is None and self.min_contrast > 0:
            wanted += [_DARK, _BRIGHT]
        if self._asks_radius:
            wanted.append(_RADIUS)
        return tuple(wanted)

    def adapted(self, image: ImageInfo, statistics: Mapping[Statistic, float]) -> Self:
        """Fill in the radius that was measured."""
        return self.model_copy(update={"object_radius": statistics[_RADIUS]}) if self._asks_radius else self

    def context(self, image: ImageInfo) -> tuple[int, ...]:
        """Reach of the filters, and one pixel that can be known at all."""
        return (self._margin(_LEAST_RADIUS) + 1,) * image.ndim

    def halo(self, image: ImageInfo) -> tuple[int, ...]:
        """Return the context, and room for a nucleus; in 3D, where most touch others, for two."""
        room = int(2 * (image.ndim - 1) * (self.object_radius or _USUAL_RADIUS)) + 8
        return (max(self._margin(_USUAL_RADIUS) + 1 + room, 64 if image.ndim == 2 else 16),) * image.ndim

    def _margin(self, usual: float) -> int:
        """Pixels at an open side where the foreground is not known; ``usual`` stands in for a missing radius."""
        margin = reach(self.sigma) + (self.median_filter_size or 0)
        if self.threshold is None:
            margin += contrast_reach(self.object_radius or usual)
        elif self.threshold == "local-otsu":
            margin += otsu_reach(self.otsu_block)
        elif self.median_block is not None:
            margin += median_reach(self.median_block, self.median_step)
        return margin + (2 * self.speckle_kernel - 1 if self.speckle_kernel else 0) + self.dilation

    def _radius(self, view: View) -> float:
        return view.statistics.get(_RADIUS, _USUAL_RADIUS) if self.object_radius is None else self.object_radius

    def predict(self, image: NDArray[Any], view: View) -> NDArray[np.uint8]:
        """Return the foreground, 0 or 1."""
        stain = image[0] if self.median_filter_size is None else disk_median(image[0], self.median_filter_size)
        low, span = 0.0, 1.0
        if self._quantiles is not None:
            low, high = (view.statistics[quantile_or_end(0, q)] for q in self._quantiles)
            span = high - low or 1.0
            scaled = np.clip((stain - low) / span, 0, 1) if high > low else stain > low
            stain = scaled.astype(np.float32)
        mask = self._foreground(smooth(stain, self.sigma), view, low, span)
        if self.speckle_kernel is not None:
            eroded = squared_distance(as_volume(mask)) > self.speckle_kernel**2
            mask = (squared_distance(~eroded) <= (self.speckle_kernel - 1) ** 2).reshape(mask.shape)
        return mask[None].astype(np.uint8)

    def _foreground(self, smooth: NDArray[Any], view: View, low: float, span: float) -> NDArray[np.bool_]:
        """Compare with the threshold; the statistics are of the image, ``low`` and ``span`` brought it to 0..1."""
        known = view.statistics
        if self.threshold is None:
            least = self.min_contrast * (known[_BRIGHT] - known[_DARK]) / span if self.min_contrast else 0.0
            return contrast_mask(smooth, view.window, self._radius(view), self.contrast, least)
        if isinstance(self.threshold, str):
            otsu = (known[self._otsu] - low) / span
            if self.threshold == "otsu":
                return smooth > otsu
            floor = (otsu + (known[_DARK] - low) / span) / 2
            return _planes(smooth, view.window, lambda plane, window: otsu_mask(plane, window, self.otsu_block, floor))
        if self.median_block is None:
            return smooth > self.threshold
        block, step, offset = self.median_block, self.median_step, self.threshold
        ends = (0.0, 1.0)
        if self._quantiles is None:
            ends = known[quantile_or_end(0, 0)], known[quantile_or_end(0, 1)]
        return _planes(smooth, view.window, lambda plane, window: median_mask(plane, window, block, step, offset, ends))

    def decode(self, maps: NDArray[Any], view: View) -> Decoded:
        """Find the peaks, flood the foreground from them, and judge the objects."""
        window, mask = view.window, maps[0].astype(bool)
        radius = self._radius(view)
        margin = (self._margin(radius),) * window.box.ndim
        box = window.shrink(margin)
        if box.size == 0:
            return Decoded(np.where(mask, np.int32(UNRESOLVED), np.int32(0)))
        inner = box.within(window.box)
        squared = squared_distance(as_volume(mask[inner]))
        unseen = unknown(squared, window, margin)
        distance = max(2, round(0.7 * radius)) if self.min_distance is None else self.min_distance
        if self.peak_footprint is None:
            found, unsure = peaks(squared, unseen, window.edge, distance)
        else:
            found, unsure = spaced_peaks(squared, unseen, window.edge, self.peak_footprint, distance)
        if self.dilation:
            mask = (squared_distance(as_volume(~mask)) <= self.dilation**2).reshape(mask.shape)
            squared = squared_distance(as_volume(mask[inner]))
            unseen = unknown(squared, window, margin)
        flooded, complete = flood(squared, found, unseen, unsure)
        labels = np.where(mask, np.int32(UNRESOLVED), np.int32(0))
        labels[inner] = flooded.reshape(labels[inner].shape)
        anchors = found[:, 3 - mask.ndim :] + [s.start for s in inner]
        return Decoded(labels, anchors, complete, self._reasons(flooded, len(found), radius, mask.ndim))

    def without_least_size(self, image: ImageInfo) -> tuple[Self, float]:
        """Leave ``debris`` to whole objects: the share is that of a disk, in voxels."""
        least = self.debris * pi * (self.object_radius or _USUAL_RADIUS) ** 2
        return self.model_copy(update={"debris": 0.0}), least

    def _reasons(self, labels: NDArray[np.int32], n: int, radius: float, ndim: int) -> NDArray[np.uint8]:
        """Say which objects are rejected, and why."""
        reasons = np.zeros(n, np.uint8)
        if self.contact_filter is not None:
            reasons[background_contact(labels, n) < self.contact_filter] = Reason.CONTACT
        if self.debris > 0:
            least = self.debris * (pi * radius**2 if ndim == 2 else 4 / 3 * pi * radius**3)
            reasons[np.bincount(labels[labels > 0], minlength=n + 1)[1:] < least] = Reason.TOO_SMALL
        return reasons


def _planes(image: NDArray[Any], window: Window, mask: Callable[..., NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Apply what works on a plane to the image, or to each of its planes."""
    if image.ndim == 2:
        return mask(image, window)
    return np.stack([mask(plane, window.flat) for plane in image])
