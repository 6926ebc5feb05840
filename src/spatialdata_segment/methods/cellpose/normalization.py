"""How channels are brought to about 0..1 before a network sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.local_levels import LocalLevels
from spatialdata_segment.core.statistics import Statistic, quantile_or_end

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLAT = 1e-3
"""Channels whose levels are no farther apart hold nothing, as Cellpose has it."""

Percent = Annotated[float, Field(ge=0, le=100)]
Pair = tuple[float, float]


class Normalization(BaseModel):
    """Which values of a channel become 0 and 1. Nothing is clipped; where they are the same, all becomes 0.

    Parameters
    ----------
    percentile
        Percentiles, 0 to 100, of each channel of the whole image.
    lowhigh
        In their place, pixel values: ``(low, high)`` for all channels, or one pair for each.
    tile_norm_blocksize
        px; above 0 the percentiles are those of blocks of this side, smoothed and interpolated between them.
        Smoothing is along both axes (Cellpose 3 smooths along y alone), and blocks without a signal take no part.
    norm3D
        Of a volume: True: percentiles are those of the whole of it. False: of each whole plane that the network sees,
        XY, ZX and ZY. Single images have nothing of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    percentile: tuple[Percent, Percent] = (1.0, 99.0)
    lowhigh: Pair | tuple[Pair, ...] | None = None
    tile_norm_blocksize: int = Field(default=0, ge=0)
    norm3D: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.percentile[0] >= self.percentile[1]:
            raise ValueError(f"percentile={self.percentile}: expected the lower one first, such as (1, 99)")
        if self.lowhigh is not None and not self.lowhigh:
            raise ValueError("lowhigh=(): expected a pair (low, high), or one a channel")
        for low, high in self.pairs:
            if low >= high:
                raise ValueError(f"lowhigh={self.lowhigh}: expected the lower value first, such as (0, 255)")
        for name in ("percentile", "tile_norm_blocksize"):
            if self.lowhigh is not None and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} and lowhigh are both given: give one of them")
        if not self.norm3D and (self.lowhigh is not None or self.tile_norm_blocksize):
            raise ValueError("norm3D=False is for percentiles: leave lowhigh and tile_norm_blocksize out")
        if 0 < self.tile_norm_blocksize < 16:
            raise ValueError(f"tile_norm_blocksize={self.tile_norm_blocksize}: expected 0 (off), or at least 16 px")
        return self

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The values that are given."""
        if not self.lowhigh:
            return ()
        return tuple(self.lowhigh) if isinstance(self.lowhigh[0], tuple) else (self.lowhigh,)

    def statistics(self, n_channels: int, shape: tuple[int, ...]) -> list[Statistic]:
        """Return the numbers that it needs of an image or a volume."""
        if self.lowhigh is not None or self.tile_norm_blocksize:
            return []
        whole = [(c, p / 100) for c in range(n_channels) for p in self.percentile]
        if self.norm3D or len(shape) == 2:
            return [quantile_or_end(c, q) for c, q in whole]
        planes = [(axis, k) for axis, n in enumerate(shape) for k in range(n)]
        return [quantile_or_end(c, q, *plane) for c, q in whole for plane in planes]

    def reach(self) -> int:
        """Return how many pixels around a pixel its value depends on."""
        return self._local((1, 1)).reach() if self.tile_norm_blocksize else 0

    def apply(
        self,
        pixels: NDArray[Any],
        origin: tuple[int, ...],
        box: Box,
        shape: tuple[int, ...],
        statistics: Mapping[Statistic, float],
        *,
        invert: bool = False,
        axis: int = 0,
    ) -> NDArray[np.float32]:
        """Normalise a box.

        Parameters
        ----------
        pixels
            ``(c, [z], y, x)`` that hold the box and `reach` around it.
        origin
            ``([z], y, x)`` of their first pixel.
        box
            In indices of the whole image.
        shape
            ``([z], y, x)`` of the whole image.
        statistics
            The numbers that were asked for.
        invert
            Make 0 of 1 and 1 of 0.
        axis
            Of a volume: along which the network sees planes.
        """
        inner = tuple(slice(a - o, b - o) for a, b, o in zip(box.start, box.stop, origin, strict=True))
        out = pixels[(slice(None), *inner)].astype(np.float32)
        if self.tile_norm_blocksize:
            low, high = self._local((shape[0], shape[1])).of(pixels, (origin[0], origin[1]), box)
        else:
            low, high = self._levels(len(out), box, axis, statistics)
        span = high - low
        least = 0.0 if self.pairs else FLAT
        out -= low
        out /= np.where(span > least, span, np.float32(1))
        if invert:
            np.subtract(1, out, out=out)
        out *= span > least
        return out

    def _levels(
        self, n_channels: int, box: Box, axis: int, statistics: Mapping[Statistic, float]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the lower and the upper level, ``(c, [z], y, x)`` or 1 along the axes along which they agree."""
        ndim = box.ndim
        if self.norm3D or ndim == 2 or self.pairs:
            pairs = self.pairs or tuple(_measured(self.percentile, c, statistics) for c in range(n_channels))
            levels = np.array(pairs * (n_channels if len(pairs) == 1 else 1), np.float32).reshape(-1, *(1,) * ndim, 2)
        else:
            planes = range(box.start[axis], box.stop[axis])
            found = [[_measured(self.percentile, c, statistics, axis, k) for k in planes] for c in range(n_channels)]
            along = tuple(len(planes) if k == axis else 1 for k in range(ndim))
            levels = np.array(found, np.float32).reshape(n_channels, *along, 2)
        return levels[..., 0], levels[..., 1]

    def _local(self, shape: tuple[int, int]) -> LocalLevels:
        return LocalLevels(shape, self.tile_norm_blocksize, self.percentile, FLAT)


def _measured(
    percentile: Pair, channel: int, statistics: Mapping[Statistic, float], axis: int | None = None, plane: int = 0
) -> Pair:
    """Return the levels of a channel, or of a plane of it; where no planes were measured, of the whole."""
    asked = [quantile_or_end(channel, p / 100, axis, plane) for p in percentile]
    if asked[0] not in statistics:
        asked = [quantile_or_end(channel, p / 100) for p in percentile]
    low, high = (statistics[s] for s in asked)
    return low, high
