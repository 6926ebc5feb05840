"""The whole image in a report, read once at a coarse scale, and what is drawn over it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialdata_segment.pl._draw import COLORS, blend, limits, show
from spatialdata_segment.pl._dropped import among, draw_dropped
from spatialdata_segment.pl._marks import scale_bar
from spatialdata_segment.pl._shards import draw_shards, plan_of
from spatialdata_segment.pl._source import source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from spatialdata_segment._results import Picture, Result
    from spatialdata_segment.pl._source import Source

SIDE = 1400
"""Pixels of the longer side of the picture."""
_OUTLINED = 16.0
"""Pixels of the median object's diameter in it below which outlines would hide the image."""
_POINTS = 6e4
"""Square points that all marks of dropped candidates cover together, but for the bounds of each."""
_GROUND = 100
"""Pixels of the picture outside of objects of which a median is taken."""


@dataclass(frozen=True)
class Whole:
    """The whole image, or the middle plane of a volume.

    Attributes
    ----------
    result, picture, channels
        What to show; None for no image.
    """

    result: Result
    picture: Picture | None
    channels: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in px of the result's grid."""
        return self.result.shape[-2], self.result.shape[-1]

    @property
    def z(self) -> int | None:
        """The plane of a volume."""
        return self.result.shape[0] // 2 if len(self.result.shape) == 3 else None

    @property
    def is_outlined(self) -> bool:
        """Whether objects are large enough in the picture for outlines."""
        rows = self.result.candidates_of(self.result.main)
        across = (rows["bbox_x_max"] - rows["bbox_x_min"]).to_numpy(float)[rows["is_kept"].to_numpy(bool)]
        return bool(len(across)) and float(np.median(across)) * SIDE / max(self.shape) >= _OUTLINED

    def draw(self, *, ax: Axes, outlined: bool) -> None:
        """Draw the image, and outlines."""
        (top, left), (bottom, right) = self._source.extent.start[-2:], self._source.extent.stop[-2:]
        show(
            ax,
            _painted(self._pixels, self._masks) if outlined else self._pixels,
            {},
            {},
            extent=(left, right, top, bottom),
            names=("x", "y"),
            aspect=1.0,
            linewidth=0.0,
        )
        if self.result.pixel_size is not None:
            scale_bar(ax, self.result.pixel_size[-1], right - left)

    def draw_dropped(self, *, ax: Axes) -> None:
        """Draw the image, and where candidates were dropped, of a volume those of all planes; few as larger points."""
        self.draw(ax=ax, outlined=False)
        height, width = self.shape
        rows = among(self.result.candidates, (0, width, 0, height), None)
        draw_dropped(ax, rows, points=float(np.clip(_POINTS / max(len(rows), 1), 8, 80)))
        for marks in ax.collections:  # dark images and stains of like colours would hide them
            marks.set(edgecolor="white", linewidth=0.8)

    def draw_shards(self, *, ax: Axes) -> None:
        """Draw the image, and how it was cut."""
        self.draw(ax=ax, outlined=False)
        draw_shards(ax, self.result, *plan_of(self.result, None), size=10)

    def ground(self) -> dict[str, float]:
        """Return, of each channel shown, the median outside of all objects; empty where little is outside."""
        if self.picture is None:
            return {}
        outside = np.all([mask == 0 for mask in self._masks.values()], axis=0)
        if outside.sum() < _GROUND:
            return {}
        names = [self.picture.names[i] for i in self.channels]
        return {name: float(np.median(p[outside])) for name, p in zip(names, self._planes, strict=True)}

    @cached_property
    def _source(self) -> Source:
        ndim, labels = len(self.result.shape), self.result.labels
        blank = next(iter(labels.values()))
        return source(
            blank if self.picture is None else self.picture.levels,
            labels,
            None,
            self.channels or None,
            ndim=ndim,
            shown=(ndim - 2, ndim - 1),
            side=SIDE,
            thin=float(SIDE) ** 2,
        )

    @cached_property
    def _pixels(self) -> NDArray[np.float32]:
        planes = self._planes
        if self.picture is None:
            return np.zeros((*planes[0].shape, 3), np.float32)
        return blend(planes, [limits([p], (0.01, 0.998)) for p in planes])

    @cached_property
    def _planes(self) -> list[NDArray[Any]]:
        return [np.asarray(c[self._at]) for c in self._source.channels]

    @cached_property
    def _masks(self) -> dict[str, NDArray[Any]]:
        return {name: np.asarray(mask[self._at]) for name, mask in self._source.masks.items()}

    @property
    def _at(self) -> tuple[Any, ...]:
        return () if self.z is None else (self._source.index(0, self.z),)


def _painted(picture: NDArray[np.float32], masks: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Return a picture, enlarged as far as it fits, with outlines painted on: as pixels they take no memory."""
    from matplotlib.colors import to_rgb

    times = max(1, SIDE // max(picture.shape[:2]))
    large = picture.repeat(times, axis=0).repeat(times, axis=1)
    for name, mask in masks.items():
        labels = mask.repeat(times, axis=0).repeat(times, axis=1)
        edge = np.zeros(labels.shape, np.bool_)
        edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
        edge[1:] |= labels[1:] != labels[:-1]
        if times > 1:  # the page shows the picture smaller: twice as wide
            edge[:, :-1] |= edge[:, 1:]
            edge[:-1] |= edge[1:]
        large[edge] = to_rgb(COLORS[name])
    return large
