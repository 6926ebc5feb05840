"""Small methods that stand for the large ones: a tiled network, a volume method, a proposing method.

They cost milliseconds, need no model, and are as awkward as what they stand for: tiles on a grid fixed to
the image, maps of half precision, flow paths that cross windows, suppression that chains through the image.
They are importable, so that the workers of a cluster can run them.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.flows import FlowRules
from spatialdata_segment.core.flows3d import CONTEXT
from spatialdata_segment.core.statistics import Statistic
from spatialdata_segment.methods.base import Candidates, Decoded, ImageInfo, Method, View
from spatialdata_segment.methods.cellpose.volume import count_ends, decode_window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_LOW, _HIGH = Statistic("quantile", 0, 0.01), Statistic("quantile", 0, 0.99)
_KERNELS = np.array(
    [[[1, 2, 1], [2, 4, 2], [1, 2, 1]], [[0, -1, 0], [-1, 6, -1], [0, -1, 0]], [[1, 1, 1], [1, -4, 1], [1, 1, 1]]],
    np.float32,
) / np.array([16, 2, 4], np.float32).reshape(3, 1, 1)  # fmt: skip


class DummyNetwork(Method):
    """A network in the small: tiles of the whole image's grid, convolutions, tapered blending, flow sinks.

    The pixels are scaled by quantiles of the whole image. Tiles of ``tile`` px begin at every half tile;
    each is padded with zeros by itself, so that its result depends on where its edges lie, and where tiles
    overlap they are averaged with weights that fall towards their edges. The map has half precision.

    Parameters
    ----------
    tile
        Side (px) of a tile, even.
    threshold
        Of the map, for the foreground.
    decoder
        "sinks": a pixel follows the map uphill to the maximum that is its object. "components": connected
        foreground, with the anchors and the completeness left to the engine.
    """

    name: ClassVar[str] = "dummy-network"
    map_dtype: ClassVar[str | None] = "float16"
    decode_parameters: ClassVar[frozenset[str]] = frozenset({"threshold", "decoder"})

    tile: int = Field(default=32, ge=4, multiple_of=2)
    threshold: float = 0.5
    decoder: Literal["sinks", "components"] = "sinks"

    def statistics(self, image: ImageInfo) -> tuple[Statistic, ...]:
        """Quantiles that scale the pixels."""
        return _LOW, _HIGH

    def context(self, image: ImageInfo) -> tuple[int, ...]:
        """Return what all tiles over a pixel cover."""
        return (self.tile - 1,) * image.ndim

    def predict(self, image: NDArray[Any], view: View) -> NDArray[np.float32]:
        """Average the tiles that meet the window."""
        low, high = (np.float32(view.statistics[s]) for s in (_LOW, _HIGH))
        scaled = (image[0].astype(np.float32) - low) / max(high - low, np.float32(1e-6))
        box = view.window.box
        ramp = np.minimum(np.arange(self.tile), np.arange(self.tile)[::-1]).astype(np.float32) + np.float32(1)
        weight = ramp[:, None] * ramp
        total, mass = np.zeros(box.shape, np.float32), np.zeros(box.shape, np.float32)
        for at in self._tiles(box):
            seen = at.intersect(box)
            pixels = np.zeros((self.tile, self.tile), np.float32)
            pixels[seen.within(at)] = scaled[seen.within(box)]
            total[seen.within(box)] += (_network(pixels) * weight)[seen.within(at)]
            mass[seen.within(box)] += weight[seen.within(at)]
        return (total / mass)[None]

    def _tiles(self, box: Box) -> Iterator[Box]:
        """Yield the image's tiles that meet a box, in raster order."""
        half = self.tile // 2
        first = [a // half - 1 for a in box.start]
        last = [ceil(b / half) for b in box.stop]
        for y in range(first[0], last[0]):
            for x in range(first[1], last[1]):
                yield Box((y * half, x * half), (y * half + self.tile, x * half + self.tile))

    def decode(self, maps: NDArray[Any], view: View) -> Decoded:
        """Follow the map uphill, or take what is connected."""
        foreground = maps[0] > np.float16(self.threshold)
        if self.decoder == "components":
            from scipy import ndimage

            return Decoded(ndimage.label(foreground)[0])
        trusted = view.window.shrink(self.context(view.image)).within(view.window.box)
        return _sinks(maps[0], foreground, view, trusted)


class DummyVolume(Method):
    """A volume method: the mean of each voxel's surroundings above a threshold, connected.

    Parameters
    ----------
    radius
        Pixels along ``(z, y, x)`` over which is averaged.
    threshold
        Quantile of the whole image.
    """

    name: ClassVar[str] = "dummy-volume"
    ndims: ClassVar[frozenset[int]] = frozenset({3})

    radius: tuple[int, int, int] = (1, 2, 2)
    threshold: float = Field(default=0.8, ge=0, le=1)

    def statistics(self, image: ImageInfo) -> tuple[Statistic, ...]:
        """Return the threshold."""
        return (Statistic("quantile", 0, self.threshold),)

    def context(self, image: ImageInfo) -> tuple[int, ...]:
        """Return the radius."""
        return self.radius

    def predict(self, image: NDArray[Any], view: View) -> NDArray[np.float32]:
        """Return the mean around each voxel."""
        mean: NDArray[Any] = image[0].astype(np.float32)
        for axis, radius in enumerate(self.radius):
            shifted = [_shift(mean, axis, k) for k in range(-radius, radius + 1)]
            mean = np.sum(shifted, axis=0) / np.float32(2 * radius + 1)
        return mean[None]

    def decode(self, maps: NDArray[Any], view: View) -> Decoded:
        """Label what is connected, through corners as well."""
        from scipy import ndimage

        (threshold,) = (view.statistics[s] for s in self.statistics(view.image))
        return Decoded(ndimage.label(maps[0] > threshold, np.ones((3, 3, 3)))[0])


class DummyDiscs(Method):
    """A proposing method: discs around bright points, of which the brightest suppress the others near them.

    Parameters
    ----------
    radius
        Of a disc, px.
    spacing
        Least distance (px) of two discs' centres. Suppression chains: whether a point stays may be decided
        at the other end of the image.
    threshold
        Pixel value above which a point is proposed.
    """

    name: ClassVar[str] = "dummy-discs"
    proposes: ClassVar[bool] = True

    radius: int = Field(default=5, ge=0)
    spacing: int = Field(default=8, ge=1)
    threshold: float = 0.0

    def context(self, image: ImageInfo) -> tuple[int, ...]:
        """Return how far a point sees others, and their neighbours."""
        return (max(self.radius, self.spacing) + 1,) * image.ndim

    def predict(self, image: NDArray[Any], view: View) -> NDArray[np.float32]:
        """Return the pixels."""
        return image[:1].astype(np.float32)

    def propose(self, maps: NDArray[Any], view: View) -> Candidates:
        """Propose the local maxima; the nearer two are than the spacing, only one may stay."""
        from scipy.spatial import cKDTree

        value = maps[0]
        anchors = np.argwhere((value > self.threshold) & (_uphill(value) == np.arange(value.size).reshape(value.shape)))
        edges = cKDTree(anchors).query_pairs(self.spacing - 0.5, output_type="ndarray") if len(anchors) else anchors
        return Candidates(anchors, value[tuple(anchors.T)], edges)

    def decode(self, maps: NDArray[Any], view: View) -> Decoded:
        """Paint the discs; where two overlap a pixel goes to the nearer, then to the first in raster order."""
        assert view.seeds is not None
        labels = np.zeros(maps.shape[1:], np.int32)
        best = np.full(labels.shape, np.iinfo(np.int64).max)
        height, width = maps.shape[-2:]
        y, x = np.ogrid[:height, :width]
        for i, (b, a) in enumerate(view.seeds.anchors.tolist(), 1):
            part = np.s_[max(b - self.radius, 0) : b + self.radius + 1, max(a - self.radius, 0) : a + self.radius + 1]
            distance = (y[part[0]] - b) ** 2 + (x[:, part[1]] - a) ** 2
            mine = (distance <= self.radius**2) & (distance < best[part])
            labels[part][mine] = i
            best[part][mine] = distance[mine]
        return Decoded(labels, view.seeds.anchors)


class DummyFlows(Method):
    """The decoding of `Cellpose(do_3D=True)` without its network: the image's four channels are the maps.

    Parameters
    ----------
    steps
        Of a path.
    min_size, max_size
        Voxels; other objects are rejected.
    """

    name: ClassVar[str] = "dummy-flows"
    ndims: ClassVar[frozenset[int]] = frozenset({3})
    default_channels: ClassVar[tuple[int, ...] | None] = (0, 1, 2, 3)
    map_dtype: ClassVar[str | None] = "float16"
    decode_parameters: ClassVar[frozenset[str]] = frozenset({"steps", "min_size", "max_size"})
    tallies: ClassVar[bool] = True
    bytes_per_pixel: ClassVar[float] = 45.0

    steps: int = Field(default=200, ge=1)
    min_size: int = 15
    max_size: float = 1e18

    @property
    def _rules(self) -> FlowRules:
        return FlowRules(steps=self.steps, min_size=self.min_size, max_size=self.max_size)

    def context(self, image: ImageInfo) -> tuple[int, ...]:
        """Return that of the decoding."""
        return (CONTEXT,) * 3

    def map_context(self, image: ImageInfo) -> tuple[int, ...]:
        """Return none."""
        return (0, 0, 0)

    def predict(self, image: NDArray[Any], view: View) -> NDArray[Any]:
        """Return the image."""
        return image

    def tally(self, maps: NDArray[Any], view: View) -> NDArray[np.int32] | None:
        """Count the ends of the core's paths."""
        return count_ends(maps, view.window, view.window.box, view.window.core, self._rules)

    def decode(self, maps: NDArray[Any], view: View) -> Decoded:
        """Follow the flows."""
        found = decode_window(maps, view, view.window.box, view.window.image, self._rules)
        return Decoded(found.labels, found.sinks, found.complete, found.reasons)


def _network(pixels: NDArray[Any]) -> NDArray[Any]:
    """Two layers of 3 x 3 convolutions with zeros beyond the edges; only sums and products, in one order."""
    hidden = [np.maximum(_convolve(pixels, k), np.float32(0)) for k in _KERNELS]
    return _convolve(hidden[0] + np.float32(0.25) * hidden[1] - np.float32(0.25) * hidden[2], _KERNELS[0])


def _convolve(pixels: NDArray[Any], kernel: NDArray[Any]) -> NDArray[Any]:
    out = np.zeros_like(pixels)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            out += kernel[dy + 1, dx + 1] * _shift(_shift(pixels, 0, dy), 1, dx)
    return out


def _shift(array: NDArray[Any], axis: int, by: int, fill: float = 0) -> NDArray[Any]:
    """Return ``out[i] = array[i + by]`` along an axis, ``fill`` beyond the edges."""
    n = array.shape[axis]
    out = np.full_like(array, fill)
    if abs(by) < n:
        to = [slice(None)] * array.ndim
        come = list(to)
        to[axis], come[axis] = slice(max(-by, 0), n - max(by, 0)), slice(max(by, 0), n - max(-by, 0))
        out[tuple(to)] = array[tuple(come)]
    return out


def _uphill(value: NDArray[Any]) -> NDArray[np.int64]:
    """Flat index of the greatest of each pixel and its neighbours; of equals the first in raster order."""
    best, at = value.copy(), np.arange(value.size).reshape(value.shape)
    index = at.copy()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            other = _shift(_shift(value, 0, dy, -np.inf), 1, dx, -np.inf)
            where = _shift(_shift(index, 0, dy, -1), 1, dx, -1)
            better = (other > best) | ((other == best) & (where < at))
            best[better], at[better] = other[better], where[better]
    return at


def _sinks(value: NDArray[Any], foreground: NDArray[np.bool_], view: View, trusted: tuple[slice, ...]) -> Decoded:
    """Label the foreground by the maximum that it leads to; -1 where the way leaves what is known."""
    known = np.zeros(value.shape, bool)
    known[trusted] = True
    sure = known.copy()  # the pixel and all its neighbours are known
    for axis in (0, 1):
        for side, is_open in ((-1, view.window.open_low[axis]), (1, view.window.open_high[axis])):
            sure &= _shift(known, axis, side, fill=not is_open)
    to = _uphill(np.where(foreground, value, -np.inf)).ravel()
    to[~(foreground & sure).ravel()] = -1
    to = np.append(to, -1)
    while (far := to[to]).tolist() != to.tolist():
        to = far
    ends = np.where(foreground, to[:-1].reshape(value.shape), -2)
    sinks = np.unique(ends[ends >= 0])
    labels = np.where(ends >= 0, np.searchsorted(sinks, ends) + 1, np.where(ends == -1, -1, 0))
    near_unknown = np.zeros(value.shape, bool)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            near_unknown |= _shift(_shift(labels, 0, dy), 1, dx) == -1
    complete = np.ones(len(sinks) + 1, bool)
    complete[labels[near_unknown & (labels > 0)]] = False
    anchors = np.column_stack(np.unravel_index(sinks, value.shape))
    return Decoded(labels.astype(np.int32), anchors, complete[1:])
