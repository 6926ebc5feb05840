"""Sums over the pixels of each object, block by block: sparse, exact, the same however the image is cut.

A block is an array ``([z], y, x)`` of labels (any integer type, 0 background, ids sparse, below 2**63) and
the index of its first pixel in the whole image. Every part is integer sums (or minima) in order of the ids,
so that combining parts neither depends on their order nor on the blocks. Nothing here is sized by an id.

int64 sums of coordinates hold while (pixels of an object) x (largest index) < 2**63: an object that fills an
image of 200,000 x 200,000 needs 2**53.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from spatialdata_segment.core import measure_kernels as kernels
from spatialdata_segment.core.measure_kernels import FRACTION_BITS, MAX_INTENSITY
from spatialdata_segment.core.objects import Objects
from spatialdata_segment.core.pair_kernels import pairs
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

P = TypeVar("P")


@dataclass(frozen=True)
class Moments:
    """Exact sums of each object: what area, centroid and bounding box follow from.

    Attributes
    ----------
    ids
        ``(n,)`` int64, ascending, > 0.
    area
        ``(n,)`` int64: pixels (voxels).
    sums
        ``(n, ndim)`` int64: the sum of the pixel indices along ``([z], y, x)`` in the whole image.
    bbox
        ``(n, 2 * ndim)`` int64: the starts of all axes, then the stops (exclusive).
    """

    ids: Ints
    area: Ints
    sums: Ints
    bbox: Ints

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return int(self.sums.shape[1])

    @property
    def centroid(self) -> NDArray[np.float64]:
        """``(n, ndim)`` mean pixel index; the centre of pixel 0 is 0.0."""
        whole, rest = np.divmod(self.sums, self.area[:, None])
        mean: NDArray[np.float64] = whole + rest / self.area[:, None]
        return mean

    def take(self, index: NDArray[np.integer] | NDArray[np.bool_]) -> Self:
        """Return the objects at ``index`` (a mask or positions)."""
        return type(self)(self.ids[index], self.area[index], self.sums[index], self.bbox[index])

    def objects(self, anchor: Ints) -> Objects:
        """Return the objects with their anchors, ``(n, ndim)`` in order of ``ids``."""
        if anchor.shape != self.sums.shape:
            raise InputError(f"anchor has shape {anchor.shape}, expected {self.sums.shape}: one row an object")
        return Objects(self.ids, anchor.astype(np.int64), self.area, self.centroid, self.bbox)


@dataclass(frozen=True)
class Pairs:
    """Pixels that two masks share: ``count[i]`` pixels are ``a[i]`` in one and ``b[i]`` in the other.

    Three int64 arrays, in order of ``(a, b)``, each pair once, ``count > 0``; 0 stands for the background.
    """

    a: Ints
    b: Ints
    count: Ints

    def __len__(self) -> int:
        return len(self.a)


@dataclass(frozen=True)
class Nearest:
    """The pixel of each object that lies nearest its centroid.

    Attributes
    ----------
    ids
        ``(n,)`` int64, ascending.
    distance
        ``(n,)`` float64: squared distance in units of (pixel / area of the object); only for comparison.
    pixel
        ``(n, ndim)`` int64: index in the whole image.
    """

    ids: Ints
    distance: NDArray[np.float64]
    pixel: Ints


@dataclass(frozen=True)
class Intensities:
    """Exact sums of the pixel values of each object, in order of the ids.

    Attributes
    ----------
    ids, count
        ``(n,)`` int64: the object, its pixels.
    whole, fraction
        ``(n, c)`` int64: the sum is ``whole + fraction / 2**FRACTION_BITS``, ``fraction`` at least 0 and
        below ``2**FRACTION_BITS``.
    invalid
        ``(n, c)`` bool: a pixel was not finite.
    """

    ids: Ints
    count: Ints
    whole: Ints
    fraction: Ints
    invalid: NDArray[np.bool_]

    def mean(self, ids: NDArray[np.integer] | None = None) -> NDArray[np.float64]:
        """Return the mean values ``(n, c)`` of ``ids`` (default all), NaN for what is missing."""
        whole, rest = np.divmod(self.whole, self.count[:, None])
        means: NDArray[np.float64] = whole + (rest + self.fraction * 2.0**-FRACTION_BITS) / self.count[:, None]
        means[self.invalid] = np.nan
        if ids is None:
            return means
        at, found = locate(self.ids, ids)
        out = np.full((len(ids), means.shape[1]), np.nan)
        out[found] = means[at[found]]
        return out


def locate(ids: Ints, wanted: NDArray[np.integer]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return where each of ``wanted`` stands in the ascending ``ids``, and whether it is there at all."""
    if not len(ids):
        return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), bool)
    at = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return at, ids[at] == wanted


def measure(labels: NDArray[np.integer], offset: Sequence[int]) -> Moments:
    """Measure the objects of one block.

    Parameters
    ----------
    labels
        Labels ``([z], y, x)``, any integer type, ids in any order.
    offset
        Index of the block's first pixel in the whole image, one number an axis.
    """
    start = _offset(labels, offset)
    ids, acc = kernels.moments(_volume(labels), start)
    _refuse(ids)
    order = np.argsort(ids)
    axes = np.arange(3 - labels.ndim, 3)
    acc = acc[order]
    return Moments(ids[order], acc[:, 0].copy(), acc[:, 1 + axes], acc[:, np.concatenate([4 + axes, 7 + axes])])


def combine(parts: Iterable[Moments]) -> Moments:
    """Combine the parts of any blocks that share no pixel; at least one part."""
    found = _some(parts)
    ids, order, first = _group(np.concatenate([p.ids for p in found]))
    if not len(ids):
        return found[0]
    ndim = found[0].ndim
    bbox = np.concatenate([p.bbox for p in found])[order]
    return Moments(
        ids,
        np.add.reduceat(np.concatenate([p.area for p in found])[order], first),
        np.add.reduceat(np.concatenate([p.sums for p in found])[order], first),
        np.hstack([np.minimum.reduceat(bbox[:, :ndim], first), np.maximum.reduceat(bbox[:, ndim:], first)]),
    )


def pair_counts(a: NDArray[np.integer], b: NDArray[np.integer], *, background: bool = False) -> Pairs:
    """Count the pixels that each object of ``a`` shares with each of ``b``.

    Parameters
    ----------
    a, b
        Labels of the same pixels, same shape ``([z], y, x)``.
    background
        Also count the pixels that only one of the two covers, the other's id being 0.
    """
    if a.shape != b.shape:
        raise InputError(f"masks of shapes {a.shape} and {b.shape} do not cover the same pixels")
    ids, count = pairs(_volume(a), _volume(b), background)
    _refuse(ids.ravel())
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    return Pairs(ids[order, 0], ids[order, 1], count[order])


def combine_pairs(parts: Iterable[Pairs]) -> Pairs:
    """Combine the counts of any blocks that share no pixel; at least one part."""
    found = _some(parts)
    a, b, count = (np.concatenate([getattr(p, name) for p in found]) for name in ("a", "b", "count"))
    if not len(a):
        return found[0]
    order = np.lexsort((b, a))
    a, b = a[order], b[order]
    first = np.flatnonzero(np.r_[True, (np.diff(a) != 0) | (np.diff(b) != 0)])
    return Pairs(a[first], b[first], np.add.reduceat(count[order], first))


def nearest_pixel(labels: NDArray[np.integer], offset: Sequence[int], moments: Moments) -> Nearest:
    """Find, in one block, the pixel of each object that is nearest to the centroid of the whole object.

    Ties fall to the lowest pixel in raster order. Distances are compared as integers (multiplied by the
    area) while they stay below 2**53, so that a tie is a tie wherever the object lies.

    Parameters
    ----------
    labels, offset
        The block, see :func:`measure`.
    moments
        Moments of the whole objects; ids that it does not hold are left out.
    """
    start = _offset(labels, offset)
    ndim = labels.ndim
    sums = np.zeros((len(moments), 3), np.int64)
    sums[:, 3 - ndim :] = moments.sums
    ids, distance, pixel = kernels.nearest(_volume(labels), start, _locked(moments.ids), _locked(moments.area), sums)
    order = np.argsort(ids)
    return Nearest(ids[order], distance[order], pixel[order, 3 - ndim :])


def combine_nearest(parts: Iterable[Nearest]) -> Nearest:
    """Combine the parts of any blocks: the nearest pixel, ties by raster order; at least one part."""
    found = _some(parts)
    ids, distance, pixel = (np.concatenate([getattr(p, n) for p in found]) for n in ("ids", "distance", "pixel"))
    order = np.lexsort((*pixel.T[::-1], distance, ids))
    order = order[np.r_[True, np.diff(ids[order]) != 0][: len(order)]]
    return Nearest(ids[order], distance[order], pixel[order])


def intensity_sums(labels: NDArray[np.integer], image: NDArray[Any]) -> Intensities:
    """Sum the values of each channel over each object of one block.

    Integer pixels are summed exactly. Float pixels are rounded, each by itself, to the nearest multiple of
    ``2**-FRACTION_BITS`` (half to even) and summed exactly from there on: no sum depends on the blocks or
    on any order, and a mean is off by at most 4.6e-13. A pixel that is not finite makes the mean NaN.

    Parameters
    ----------
    labels
        Labels ``([z], y, x)`` of the block.
    image
        The same pixels, ``(c, [z], y, x)``, integer, bool or float.

    Raises
    ------
    InputError
        For other shapes or types, or a float or 64-bit value beyond ``MAX_INTENSITY``.
    """
    if image.shape[1:] != labels.shape:
        raise InputError(f"image of shape {image.shape} does not cover labels of shape {labels.shape}")
    kind = image.dtype
    if kind.kind not in "biuf":
        raise InputError(f"cannot sum pixels of type {kind}: expected an integer, bool or float image")
    if kind.kind == "u" and kind.itemsize == 8 and image.size and image.max() > MAX_INTENSITY:
        raise _too_large(kind)
    image = image.astype(_pixel_type(kind), copy=False)
    volume = _locked(image.reshape(len(image), *_volume(labels).shape))
    add = kernels.add_floats if kind.kind == "f" else kernels.add_integers
    ids, count, whole, fraction, invalid, beyond = add(_volume(labels), volume)
    _refuse(ids)
    if beyond:
        raise _too_large(kind)
    order = np.argsort(ids)
    return Intensities(ids[order], count[order], whole[order], fraction[order], invalid[order])


def combine_intensities(parts: Iterable[Intensities]) -> Intensities:
    """Combine the sums of any blocks that share no pixel; at least one part."""
    found = _some(parts)
    ids, order, first = _group(np.concatenate([p.ids for p in found]))
    if not len(ids):
        return found[0]
    count, whole, fraction, invalid = (
        np.concatenate([getattr(p, n) for p in found])[order] for n in ("count", "whole", "fraction", "invalid")
    )
    # at most 2**23 fractions below 2**40 each, and an object lies in far fewer blocks
    fraction = np.add.reduceat(fraction, first)
    return Intensities(
        ids,
        np.add.reduceat(count, first),
        np.add.reduceat(whole, first) + (fraction >> FRACTION_BITS),
        fraction & ((1 << FRACTION_BITS) - 1),
        np.logical_or.reduceat(invalid, first),
    )


def map_labels(labels: NDArray[np.integer], ids: Ints, new: NDArray[np.integer], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the labels with ``ids`` (ascending) replaced by ``new``; pixels of any other id become 0."""
    volume = _volume(labels)
    if len(ids) and ids[-1] < labels.size // 4:  # a table is then smaller than the block
        table = np.zeros(int(ids[-1]) + 1, dtype)
        table[ids] = new
        out = np.empty(volume.shape, dtype)
        kernels.look_up(volume, _locked(table), out)
    else:
        out = np.zeros(volume.shape, dtype)
        kernels.replace(volume, _locked(ids), _locked(new.astype(dtype, copy=False)), out)
    return out.reshape(labels.shape)


def _pixel_type(kind: np.dtype[Any]) -> type[np.number]:
    if kind.kind == "f":
        return np.float32 if kind.itemsize <= 4 else np.float64
    return np.uint16 if kind.kind in "bu" and kind.itemsize <= 2 else np.int64


def _too_large(kind: np.dtype[Any]) -> InputError:
    return InputError(
        f"a pixel of the {kind} image is beyond {MAX_INTENSITY:.3g} in size: sums would not be exact; "
        "scale the image down"
    )


def _some(parts: Iterable[P]) -> list[P]:
    found = list(parts)
    if not found:
        raise InputError("nothing to combine: expected at least one part")
    return found


def _group(ids: Ints) -> tuple[Ints, NDArray[np.intp], NDArray[np.intp]]:
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    first = np.flatnonzero(np.r_[True, np.diff(ids) != 0][: len(ids)])
    return ids[first], order, first


def _locked(array: NDArray[Any]) -> NDArray[Any]:
    # always contiguous and read-only: one compiled kernel a type
    array = np.ascontiguousarray(array).view()
    array.flags.writeable = False
    return array


def _volume(labels: NDArray[np.integer]) -> NDArray[Any]:
    kind = labels.dtype
    if kind.kind not in "biu" or labels.ndim not in (2, 3):
        raise InputError(
            f"labels of type {kind} with {labels.ndim} axes: expected integers with axes (y, x) or (z, y, x)"
        )
    # two types, so that each kernel is compiled for few; what is above int64 shows as negative
    if kind.kind == "u" and kind.itemsize == 8 and kind.isnative:
        labels = labels.view(np.int64)
    else:
        labels = labels.astype(np.int64 if kind.kind == "i" or kind.itemsize == 8 else np.uint32, copy=False)
    return _locked(labels if labels.ndim == 3 else labels[None])


def _offset(labels: NDArray[Any], offset: Sequence[int]) -> Ints:
    if len(offset) != labels.ndim:
        raise InputError(f"offset {tuple(offset)} has {len(offset)} numbers, expected {labels.ndim}")
    return np.array([0] * (3 - labels.ndim) + [int(o) for o in offset], np.int64)


def _refuse(ids: Ints) -> None:
    if len(ids) and ids.min() < 0:
        raise InputError(f"label {ids.min()} (as int64): expected 0 for background and ids below 2**63")
