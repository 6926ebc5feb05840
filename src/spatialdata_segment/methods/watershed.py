"""Cells grown from their nuclei over a potential of the membrane stain."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from spatialdata_segment.core.distance import squared_distance
from spatialdata_segment.core.expand import expand
from spatialdata_segment.core.potential import UNIT, grow, ridges
from spatialdata_segment.core.shards import as_volume
from spatialdata_segment.core.smooth import reach, smooth
from spatialdata_segment.core.statistics import Statistic, quantile_or_end
from spatialdata_segment.core.unresolved import UNRESOLVED, complete
from spatialdata_segment.errors import SegmentationWarning
from spatialdata_segment.methods.base import Decoded, ImageInfo, Method, Share, View, pixels, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from spatialdata_segment.core.plan import Window

_OTSU = Statistic("otsu")
_TOP = np.iinfo(np.uint16).max
_HAZE = 0.05
"""Share of the stain's range that is added on both sides of a contrast: darkness has no contrast of its own."""

Radius = Annotated[int, Field(strict=True, ge=0)]


class SeededWatershed(Method):
    """Every nucleus grown over the membrane stain until it meets another cell, or the background.

    Where the stain is bright, growth is slow: cells meet on the bright ridge between them. Each pixel goes to the
    nucleus of the least travel time, the least of equals to the nucleus whose anchor comes first in raster order. A
    nucleus lies wholly in its own cell. The labels are the same for every shard plan.

    The stain is scaled to 0..1 by quantiles of the whole image. Its `contrast_radius` turns it into its contrast
    with its surroundings, so that membranes weigh as much where the light is weak. The potential is 1 minus that.

    Three things make background, from which nothing grows into cells: stain below `threshold`, if one is given; what
    lies behind a `ridge`; and what lies farther than `max_distance` from every nucleus.

    Parameters
    ----------
    threshold
        Scaled stain, 0 to 1, below which a pixel outside nuclei is background; 0: none is. None: Otsu's threshold of
        the whole image, for a stain that fills the cells.
    lower_quantile_normalization, upper_quantile_normalization
        Quantiles, 0 to 1, of the stain in the whole image that become 0 and 1. What lies beyond is clipped.
    sigma
        Standard deviation, in px, of the Gaussian that smooths the stain first; 0: none.
    contrast_radius
        Half width, in px, of the square (in 3D the cube) whose mean a pixel is compared with; 0: the scaled stain is
        taken as it is.
    erosion, dilation
        Radii, in px, of the disks (in 3D balls) by which what is not below the threshold is eroded (specks go), and
        then dilated (gaps close, cells widen).
    min_clip, max_clip
        Potentials, 0 to 1, at which growth is slowest (a tenth of the full speed) and fastest.
    ridge
        Height, 0 to 1, in units of the contrast: a pixel to which every way from its nucleus leads over a ridge that
        is higher than the pixel by more than this lies behind it, and is background. None: ridges only slow growth.
    background
        "meets": background grows as cells do, so that both meet on the bright membrane. "stops": cells fill all that
        is not background; for a stain that fills the cells, with ``threshold=None``.
    max_distance
        How far a cell may reach from its nucleus; None: any distance. Without a limit a shard may have to look at
        much of the image.
    unit
        Of ``max_distance``: "px", or "um" (µm; needs the pixel size).

    Notes
    -----
    The steps are those of scPortrait's WGA segmentation (https://github.com/MannLabs/scPortrait), whose parameters
    keep their names; its fast marching and its watershed are one flood here. The rules of the flood are in
    `spatialdata_segment.core.potential`.
    """

    name: ClassVar[str] = "seeded-watershed"
    ndims: ClassVar[frozenset[int]] = frozenset({2, 3})
    default_channels: ClassVar[tuple[int, ...] | None] = (1,)
    seeded: ClassVar[bool] = True
    map_dtype: ClassVar[str | None] = "uint16"
    decode_parameters: ClassVar[frozenset[str]] = frozenset(
        {"threshold", "erosion", "dilation", "min_clip", "max_clip", "ridge", "background", "max_distance", "unit"}
    )
    bytes_per_pixel: ClassVar[float] = 90.0
    seconds_per_megapixel: ClassVar[float] = 1.0

    threshold: Share | None = 0.0
    lower_quantile_normalization: Share = 0.01
    upper_quantile_normalization: Share = 0.99
    sigma: float = Field(default=1.0, ge=0)
    contrast_radius: Radius = 20
    erosion: Radius = 0
    dilation: Radius = 0
    min_clip: Share = 0.3
    max_clip: Share = 1.0
    ridge: Share | None = 0.2
    background: Literal["meets", "stops"] = "meets"
    max_distance: float | None = Field(default=50.0, gt=0)
    unit: Literal["px", "um"] = "px"

    @classmethod
    def scportrait(cls, **changes: Any) -> Self:
        """Return the method with the values that scPortrait documents for its WGA segmentation.

        Parameters
        ----------
        **changes
            Parameters that are to differ.
        """
        documented = {
            "threshold": 0.05,
            "erosion": 2,
            "dilation": 7,
            "min_clip": 0.0,
            "max_clip": 0.2,
            "sigma": 0.0,
            "contrast_radius": 0,
            "ridge": None,
            "background": "stops",
            "max_distance": None,
        }
        return cls(**documented | changes)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for low, high in (
            ("lower_quantile_normalization", "upper_quantile_normalization"),
            ("min_clip", "max_clip"),
        ):
            if getattr(self, low) >= getattr(self, high):
                raise ValueError(f"{low}={getattr(self, low)} is not below {high}={getattr(self, high)}: lower it")
        return self

    @property
    def _range(self) -> tuple[Statistic, Statistic]:
        return (
            quantile_or_end(0, self.lower_quantile_normalization),
            quantile_or_end(0, self.upper_quantile_normalization),
        )

    def statistics(self, image: ImageInfo) -> tuple[Statistic, ...]:
        """Return the quantiles of the stain, and Otsu's threshold unless one is given."""
        return (*self._range, _OTSU) if self.threshold is None else self._range

    def adapted(self, image: ImageInfo, statistics: Mapping[Statistic, float]) -> Self:
        """Say so where the stain shows nothing to grow by."""
        low, high = self._range
        if low in statistics and statistics[low] == statistics[high]:
            warnings.warn(
                f"the membrane stain is {statistics[low]:g} at both quantiles, {self.lower_quantile_normalization:g} "
                f"and {self.upper_quantile_normalization:g}: the cells are nuclei that were grown. Check channels=, "
                "widen the quantiles, or use ExpandNuclei",
                SegmentationWarning,
                stacklevel=2,
            )
        return self

    @property
    def _reach(self) -> int:
        """Pixels beyond which nothing acts on what is known of a pixel, but for the flood; at least 1."""
        return max(reach(self.sigma) + self.contrast_radius + self.erosion + self.dilation, 1)

    def context(self, image: ImageInfo) -> tuple[int, ...]:
        """Return the reach of the filters, and one pixel that can be known at all."""
        return (self._reach + 1,) * image.ndim

    def halo(self, image: ImageInfo) -> tuple[int, ...]:
        """Return the context and the farthest reach of a cell, as far as it is common."""
        far = 48.0 if self.max_distance is None else self.max_distance
        reach = whole(pixels(far, "px" if self.max_distance is None else self.unit, image), image.ndim)
        least = super().halo(image)
        return tuple(max(a, c + min(r, 128)) for a, c, r in zip(least, self.context(image), reach, strict=True))

    def predict(self, image: NDArray[Any], view: View) -> NDArray[np.uint16]:
        """Return the scaled stain and its contrast, both 0 to 65535."""
        low, high = (view.statistics[s] for s in self._range)
        stain = _scaled(smooth(image[0], self.sigma), low, high)
        return np.stack([stain, _contrast(stain, self.contrast_radius) if self.contrast_radius else stain])

    def decode(self, maps: NDArray[Any], view: View) -> Decoded:
        """Find what is background, and let the nuclei and the background grow."""
        assert view.seeds is not None
        assert view.seeds.labels is not None
        window, nuclei, n = view.window, as_volume(view.seeds.labels), len(view.seeds.anchors)
        at = _inside(window, (self._reach,) * window.box.ndim)
        seeds, contrast = nuclei[at], as_volume(maps[1])[at]
        near, far = (a[at] for a in self._near(nuclei > 0, view))
        behind = (far | ~self._foreground(as_volume(maps[0]), nuclei > 0, view)[at]) & (seeds == 0)
        unsure = ~(near | behind) & (seeds == 0)
        slowness = self._slowness()[contrast]
        if self.ridge is not None:
            owner = grow(np.where(behind, np.uint16(0), slowness), _with(seeds, unsure), window.edge)
            behind, unsure = self._behind_ridge(behind, owner, seeds > 0, contrast)
        sources = _with(seeds, unsure)
        if self.background == "stops":
            slowness[behind] = 0
        else:
            sources[behind] = n + 1
        grown = grow(slowness, sources, window.edge)
        grown[grown == n + 1] = 0
        labels = np.full(nuclei.shape, UNRESOLVED, np.int32)
        labels[at] = grown
        return Decoded(labels.reshape(view.seeds.labels.shape), view.seeds.anchors, complete(labels, n))

    def _near(self, nuclei: NDArray[np.bool_], view: View) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Tell which pixels are, and which are not, within the distance of a nucleus, as far as the window knows."""
        if self.max_distance is None:
            return np.ones(nuclei.shape, np.bool_), np.zeros(nuclei.shape, np.bool_)
        distance = pixels(self.max_distance, self.unit, view.image)
        near = expand(nuclei.astype(np.int32), distance) > 0
        far = np.zeros(nuclei.shape, np.bool_)
        at = _inside(view.window, whole(distance, view.image.ndim))
        far[at] = ~near[at]
        return near, far

    def _foreground(self, stain: NDArray[Any], nuclei: NDArray[np.bool_], view: View) -> NDArray[np.bool_]:
        """Tell what is not below the threshold; not to be trusted up to the reach from an open side."""
        if self.threshold is None:
            low, high = (view.statistics[s] for s in self._range)
            foreground = stain > _scaled(np.array([view.statistics[_OTSU]]), low, high)
        else:
            foreground = stain >= round(self.threshold * _TOP)
        foreground |= nuclei
        if self.erosion:
            foreground = squared_distance(foreground) > self.erosion**2
        if self.dilation:
            foreground = squared_distance(~foreground) <= self.dilation**2
        return foreground

    def _behind_ridge(
        self,
        behind: NDArray[np.bool_],
        owner: NDArray[np.int32],
        nuclei: NDArray[np.bool_],
        contrast: NDArray[np.uint16],
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Add to the background what lies behind a ridge; tell what is background, and what may be."""
        assert self.ridge is not None
        level = (contrast >> 8).astype(np.uint8)
        least = level + np.uint16(round(self.ridge * 255))
        hidden = owner == UNRESOLVED
        seen = ridges(level, owner, nuclei)
        maybe = ridges(level, owner, nuclei | hidden) if hidden.any() else seen
        behind = behind | ((least < maybe) & ~hidden & ~nuclei)
        return behind, (hidden | (least < seen)) & ~behind & ~nuclei

    def _slowness(self) -> NDArray[np.uint16]:
        """Return the slowness for each contrast, 0 to 65535: once to ten times the least."""
        potential = 1 - np.arange(_TOP + 1) / _TOP
        share = (np.clip(potential, self.min_clip, self.max_clip) - self.min_clip) / (self.max_clip - self.min_clip)
        return _rounded(UNIT / (0.1 + 0.9 * share))


def _inside(window: Window, margin: tuple[int, ...]) -> tuple[slice, ...]:
    """Index of the window without a margin at its open sides, empty where that is all, along ``(z, y, x)``."""
    box = window.shrink(margin)
    index = tuple(slice(s.start, max(s.start, s.stop)) for s in box.within(window.box))
    return (slice(None),) * (3 - len(index)) + index


def _with(seeds: NDArray[np.int32], unsure: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return what grows: the seeds, and what the window does not show."""
    return np.where(unsure, np.int32(UNRESOLVED), seeds)


def _scaled(image: NDArray[Any], low: float, high: float) -> NDArray[np.uint16]:
    """Scale to 0..65535, clipped. A flat image is 0."""
    if high <= low:
        return np.zeros(image.shape, np.uint16)
    share = (image.astype(np.float64) - low) / (high - low)
    return _rounded(np.clip(share, 0, 1, out=share) * _TOP)


def _contrast(stain: NDArray[np.uint16], radius: int) -> NDArray[np.uint16]:
    """Compare each pixel with the mean of the square around it, cut at the array: half where they are equal.

    Sums of integers: the same in every window that shows the square.
    """
    total, count = stain.astype(np.int64), 1
    for axis, length in enumerate(stain.shape):
        sums = np.zeros([n + (a == axis) for a, n in enumerate(stain.shape)], np.int64)
        np.cumsum(total, axis, out=sums[(slice(None),) * axis + (slice(1, None),)])
        first, last = (np.clip(np.arange(length) + d, 0, length) for d in (-radius, radius + 1))
        total = sums.take(last, axis) - sums.take(first, axis)
        count = count * (last - first).reshape([-1 if a == axis else 1 for a in range(stain.ndim)])
    haze = _HAZE * _TOP
    ratio = (stain + haze) / (total / count + haze)
    return _rounded(np.minimum(0.5 * ratio, 1) * _TOP)


def _rounded(values: NDArray[Any]) -> NDArray[np.uint16]:
    rounded: NDArray[np.uint16] = np.rint(values).astype(np.uint16)
    return rounded
